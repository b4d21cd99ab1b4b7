"""Entries' common frame: bad input ends in one sentence and exit code 1."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from l2c.backbones.zoo import near_names

TRACEBACK = "L2C_TRACEBACK"


def run_folder() -> Path:
    """Return the folder that Hydra made for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def run(main: Callable[[], None]) -> None:
    """Call a Hydra entry; turn bad input into one sentence on stderr and exit code 1.

    With the environment variable `L2C_TRACEBACK=1` the traceback is shown instead.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints a traceback of its own
    try:
        main()
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        _remove_empty_run_folder()
        if os.environ.get(TRACEBACK):
            raise
        sys.stderr.write(f"error: {_sentence(error)}\n")
        sys.exit(1)


def _sentence(error: Exception) -> str:
    """Return an exception's message on one line."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group} {name!r}; {near_names(name, list(error.options))}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; choose a path that exists and that you may write to"
    text = re.sub(r"\s*\n\s*", "; ", str(error).strip())
    return text or type(error).__name__


def _remove_empty_run_folder() -> None:
    """Take back the folder that Hydra made, unless something is in it."""
    if HydraConfig.initialized():
        try:
            run_folder().rmdir()
        except (OSError, ValueError, OmegaConfBaseException):
            return  # it is in use, or was never made
