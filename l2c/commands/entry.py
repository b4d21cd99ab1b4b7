"""Entries' common frame: a Hydra config in, bad input ends in one sentence and exit code 1."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from l2c.io.bundled import project_folder
from l2c.io.names import near_names
from l2c.policies.budget import FORMS, OLD_WORDS

TRACEBACK = "L2C_TRACEBACK"
BAD_INPUT = (ValueError, OSError, MemoryError, HydraException, OmegaConfBaseException)


def run_folder() -> Path:
    """Return the folder that Hydra made for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def check_positive(cfg: DictConfig, *names: str) -> None:
    """Refuse settings that must be whole numbers from 1 on."""
    for name in names:
        if not isinstance(cfg[name], int) or cfg[name] < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {cfg[name]!r}")


def device(name: str | None) -> torch.device:
    """Return a device by its name, `cpu`, `cuda`, `cuda:1`; None = CUDA where there is a device of it.

    Raises:
        ValueError: there is no such device here.

    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name!r} here; say device=cpu, or leave it out") from error
    return chosen


def entry(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command of a function of a config, `configs/<config_name>.yaml` with overrides.

    Bad input (ValueError, OSError, a config that does not compose) prints one sentence on stderr and exits
    with code 1; with the environment variable `L2C_TRACEBACK=1` it raises instead.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> None:
            try:
                task(cfg)
            except BAD_INPUT as error:
                _fail(error)

        configs = str(project_folder("configs"))
        hydra_main = hydra.main(config_path=configs, config_name=config_name, version_base="1.3")(guarded)

        def main() -> None:
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints a traceback of its own
            try:
                hydra_main()
            except BAD_INPUT as error:  # of composing the config, or of making the run folder
                _fail(error)

        return main

    return decorate


def _fail(error: Exception) -> NoReturn:
    """Take back an empty run folder, say what is wrong, exit."""
    if HydraConfig.initialized():
        with contextlib.suppress(OSError, ValueError, OmegaConfBaseException):  # in use, or never made
            run_folder().rmdir()
    if os.environ.get(TRACEBACK):
        raise error
    sys.stderr.write(f"error: {_sentence(error)}\n")
    sys.exit(1)


def _sentence(error: Exception) -> str:
    """Return an exception's message on one line."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group} {name!r}; {near_names(name, list(error.options))}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; choose a path that exists and that you may write to"
    old = re.search(r"override '([\w.]+)'", str(error))
    if old and old[1] in OLD_WORDS:
        return f"there is no {old[1]} any more: it is called {OLD_WORDS[old[1]]} now, {FORMS}"
    text = re.sub(r"\.?\s*\n\s*", "; ", str(error).strip())
    return text or type(error).__name__
