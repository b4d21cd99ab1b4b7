"""What is wrong with a command line, in one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from l2c.commands.frame.settings import unknown_setting
from l2c.commands.frame.standard_output import disks_full, drop_output, output_is_full
from l2c.io.memory import NO_MEMORY, ExplainedMemoryError, out_of_memory, short_of_memory
from l2c.io.names import near_names, quoted, shown
from l2c.policies.budget import FORMS, OLD_WORDS

OLD = {**OLD_WORDS, "statistics": "calibration", "policy.judge_batch": "policy.eval_batch_size"}
MEND = "free some space on its disk, or choose another with hydra.run.dir=PATH"
MISSING = {"pipeline": "a folder that save_pretrained wrote, or a name on the Hub; backend=diffusers needs it"}
A_GROUP = "a group takes the name of one of its choices (solver=ddim), a setting its value (solver.cfg_scale=4)"


def explained(config_name: str, error: Exception) -> Exception:
    """Return Hydra's error of a config, with a message that says how to mend it where Hydra's own does not.

    Args:
        config_name: the command's config.
        error: Hydra's error.

    """
    if short_of_memory():
        return MemoryError()
    cause, text = error.__cause__, str(error)
    if isinstance(error, OverrideParseException):
        return ValueError(
            f"cannot read {shown(error.override, 100)!r}: say key=value; a list is [a,b], a table {{a: 1}}, and text "
            "with spaces, commas or brackets stands in quotes, for the shell too"
        )
    if merged := re.match(r"Error merging override \+*([\w.]+)=(.*)", text, re.DOTALL):
        return ValueError(
            f"{merged[1]} holds settings by name, got {shown(merged[2], 60)}; say {merged[1]}.NAME=VALUE"
        )
    if several := re.match(r"Ambiguous value for argument '([^\n]*)'\s*\n", text):
        return ValueError(
            f"{shown(several[1], 100)} holds a comma: a value with one stands in quotes, for the shell too "
            "(\"output='a,b.json'\"), a list in brackets ([a,b]), and several values are a sweep's (-m)"
        )
    unknown = re.match(r"Could not override '([\w.]+)[\w.@:/]*'\.?\s*No match", text)
    if unknown and unknown[1] not in OLD:
        return ValueError(unknown_setting(config_name, unknown[1], {}) or f"there is no {unknown[1]} here; {A_GROUP}")
    if isinstance(error, TypeError | AttributeError) or text.startswith("Config group override must be"):
        return ValueError(f"cannot compose the settings; {A_GROUP}")
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        name, parent = cause.full_key, cause.parent_node
        if name and name not in OLD and isinstance(parent, DictConfig):
            beside = cast("dict[str, Any]", OmegaConf.to_container(parent))
            if sentence := unknown_setting(config_name, name, beside):
                return ValueError(sentence)
    return error


def sentence_of(error: Exception, folder: Path, mend: str = MEND) -> str:
    """Return an exception's message on one line; `folder` and `mend` are for a failure of the disk."""
    if out_of_memory(error) and not isinstance(error, ExplainedMemoryError):
        return NO_MEMORY
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group} {name!r}; {near_names(name, list(error.options))}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {shown(error.filename, 300)}: {error.strerror}; choose a path that exists and is yours"
    if isinstance(error, OSError) and output_is_full(error):
        said = disks_full(error, folder, mend)
        drop_output()
        return said
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror or error}, in {folder}; {mend}"
    old = re.search(r"override '([\w.]+)'", str(error))
    if old and old[1] in OLD:
        forms = f", {FORMS}" if old[1] in OLD_WORDS else ""
        return f"there is no {old[1]} any more: it is called {OLD[old[1]]} now{forms}"
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", str(error)):
        meaning = MISSING.get(missing[1], "it has no default")
        return f"{missing[1]} is missing; say {missing[1]}=VALUE: {meaning}"
    text = re.sub(r"\.?\s*\n\s*", "; ", str(error).strip())
    number = re.fullmatch(r"(?:invalid literal for int\(\)|could not convert string to float).*?'(.*)'", text)
    holding = [name for name, value in os.environ.items() if number and value == number[1]]  # a library read it
    if holding:
        return (
            f"the environment variable {holding[0]} must be a number, got {quoted(os.environ[holding[0]])}; unset it"
        )
    return text or type(error).__name__
