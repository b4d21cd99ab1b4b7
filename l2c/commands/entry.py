"""The frame of all commands with a Hydra config: bad input ends in one sentence and exit code 1."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from l2c.commands.settings import check_settings
from l2c.commands.table import spelled
from l2c.io.atomic import check_writable
from l2c.io.bundled import project_folder
from l2c.io.names import near_names
from l2c.policies.budget import FORMS, OLD_WORDS

if TYPE_CHECKING:
    import torch

TRACEBACK = "L2C_TRACEBACK"
BAD_INPUT = (ValueError, OSError, MemoryError, HydraException, OmegaConfBaseException, SafetensorError)
BATCHES = ("data.batch_size", "batch_size", "batch_sizes", "num_trajectories", "timing_batch")  # what takes memory

Task = Callable[[DictConfig], None]


class Entry(Protocol):
    """A command: called, it reads `sys.argv`; `task` is the function of its config."""

    task: Task

    def __call__(self) -> None:
        """Run with the arguments of the process."""


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
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name!r} here; say device=cpu, or leave it out") from error
    return chosen


def entry(config_name: str) -> Callable[[Task], Entry]:
    """Make a command of a function of a config, `configs/<config_name>.yaml` with overrides; see `run_configured`."""

    def decorate(task: Task) -> Entry:
        def main() -> None:
            run_configured(config_name, task, sys.argv[1:])

        main.__doc__ = task.__doc__
        main.task = task  # type: ignore[attr-defined]
        return main  # type: ignore[return-value]

    return decorate


def run_configured(config_name: str, task: Task, arguments: Sequence[str]) -> None:
    """Compose `configs/<config_name>.yaml` with overrides, check it, run a task on it.

    Bad input (ValueError, OSError, a config that does not compose, no memory) prints one sentence on stderr and
    exits with code 1. In a sweep (`-m`) it ends its own job only. With the environment variable
    `L2C_TRACEBACK=1` it raises instead.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints a traceback of its own
    OmegaConf.register_new_resolver("command", spelled, replace=True)  # examples in the configs' help
    started = list(sys.argv)
    failures: list[BaseException] = []

    def job(cfg: DictConfig) -> None:
        sys.argv = started  # Lightning starts further processes with it
        try:
            with _memory_explained(cfg):
                check_settings(cfg, config_name)
                if run_folder() != Path.cwd():
                    check_writable(run_folder() / "run")
                task(cfg)
        except BAD_INPUT as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                _fail(error)
            failures.append(error)
            sys.stderr.write(f"error in job {HydraConfig.get().job.num}: {_sentence(error)}\n")

    configs = str(project_folder("configs"))
    sys.argv = [started[0], *arguments]
    try:
        hydra.main(config_path=configs, config_name=config_name, version_base="1.3")(job)()
    except BAD_INPUT as error:  # of composing the config, or of making the run folder
        _fail(error)
    finally:
        sys.argv = started
    if failures:
        sys.exit(1)


@contextlib.contextmanager
def _memory_explained(cfg: DictConfig) -> Iterator[None]:
    """Say what takes less memory where torch runs out of it; errors with a sentence of their own pass."""
    try:
        yield
    except RuntimeError as error:
        from l2c.io.memory import out_of_memory

        if not out_of_memory(error):
            raise
        given = [f"{name} (now {value})" for name in BATCHES if (value := OmegaConf.select(cfg, name)) is not None]
        raise MemoryError(f"out of memory; lower {' or '.join(given) or 'what is asked for'}") from error


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
