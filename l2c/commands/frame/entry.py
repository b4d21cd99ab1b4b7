"""The frame of all commands with a Hydra config: bad input ends in one sentence and exit code 1."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from l2c.commands.frame.help import help_page
from l2c.commands.frame.interrupts import interrupts_kept
from l2c.commands.frame.sentences import explained, sentence_of
from l2c.commands.frame.settings import checked, memory_sentence
from l2c.commands.frame.standard_output import drop_output
from l2c.commands.frame.table import COMMANDS, TRACEBACK, spelled
from l2c.io.atomic import check_writable, sweep
from l2c.io.bundled import project_folder
from l2c.io.folder_lock import is_one_of_many, job_of_sweep, locked
from l2c.io.memory import NO_MEMORY, memory_explained
from l2c.io.names import shown
from l2c.report.own_results import check_results

if TYPE_CHECKING:
    import torch

BAD_INPUT = (ValueError, OSError, MemoryError, HydraException, OmegaConfBaseException, SafetensorError)

Task = Callable[[DictConfig], None]


class CommandEntry(Protocol):
    """A command: called, it reads `sys.argv`; `task` is the function of its config."""

    task: Task

    def __call__(self) -> None:
        """Run with the arguments of the process."""


def run_folder() -> Path:
    """Return the folder that Hydra made for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def repeated(*groups: str) -> list[str]:
    """Return this run's overrides of some groups or settings, for the line of another command.

    Args:
        groups: the first part of their names, `model`.

    """
    given = HydraConfig.get().overrides.task
    return [override for override in given if re.split(r"[.=@]", override.lstrip("+~"))[0] in groups]


def device(name: str | None) -> torch.device:
    """Return a device by its name, `cpu`, `cuda`, `cuda:1`; None = CUDA where there is a device of it.

    Raises:
        ValueError: if there is no such device here.

    """
    import torch

    from l2c.io.tensors import usable_device

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(name)


def entry(config_name: str) -> Callable[[Task], CommandEntry]:
    """Make a command of a function of a config, `configs/<config_name>.yaml` with overrides; see `run_configured`."""

    def decorate(task: Task) -> CommandEntry:
        def main() -> None:
            run_configured(config_name, task, sys.argv[1:])

        main.__doc__ = task.__doc__
        main.task = task  # type: ignore[attr-defined]
        return main  # type: ignore[return-value]

    return decorate


def run_configured(config_name: str, task: Task, arguments: Sequence[str]) -> None:
    """Compose `configs/<config_name>.yaml` with overrides, check all its settings, run a task on it.

    Bad input (ValueError, OSError, a config that does not compose, no memory) prints one sentence on stderr and
    exits with code 1; with the environment variable `L2C_TRACEBACK=1` it raises instead. In a sweep (`-m`) such a
    job fails alone, and the code 1 comes at the end; so does a job that would replace an earlier one's results.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints a traceback of its own
    OmegaConf.register_new_resolver("command", spelled, replace=True)  # examples in the configs' help
    OmegaConf.register_new_resolver("help_page", help_page, replace=True)
    started = list(sys.argv)
    failed: list[str] = []  # jobs of a sweep
    begun: list[str] = []
    claimed: dict[Path, int] = {}  # by jobs of a sweep

    def job(cfg: DictConfig) -> None:
        sys.argv = started  # Lightning starts further processes with it
        begun.append(config_name)
        _let_libraries_warn()
        try:
            with interrupts_kept(), memory_explained(lambda: NO_MEMORY):
                checked(config_name, cfg)
                _use_threads(cfg)
                sentence = memory_sentence(config_name, cfg)  # made while there is memory
                with _job(claimed), _held(run_folder(), config_name), memory_explained(lambda: sentence):
                    task(cfg)
        except BAD_INPUT as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN or isinstance(error, BrokenPipeError):
                _fail(error)
            _take_back()
            sys.stderr.write(f"error: job {HydraConfig.get().job.num}: {sentence_of(error, _folder())}\n")
            failed.append(str(error))
        except KeyboardInterrupt:
            _take_back()
            sys.stderr.write("error: interrupted\n")
            sys.exit(128 + signal.SIGINT)

    sys.argv = [started[0], *_flags_first(arguments)]
    try:
        with interrupts_kept():
            configs = str(project_folder("configs"))
            hydra.main(config_path=configs, config_name=config_name, version_base="1.3")(job)()
    except BAD_INPUT as error:  # of composing the config, or of making the run folder
        _fail(explained(config_name, error))
    except (TypeError, AttributeError) as error:
        if begun:
            raise
        _fail(explained(config_name, error))  # Hydra's own, of a group that got a list or a number
    finally:
        sys.argv = started
    if failed:
        count = "1 job" if len(failed) == 1 else f"{len(failed)} jobs"
        sys.stderr.write(f"error: {count} of the sweep failed; the others are done\n")
        sys.exit(1)


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Return Hydra's flags before the settings, between which its parser would not read them.

    Exits with one sentence where a flag lacks its value, or has a wrong one.
    """
    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign]  # argparse prints its usage else
    parsed, settings = parser.parse_known_intermixed_args(arguments)
    if unknown := [word for word in settings if word.startswith("-")]:
        _refuse_flags(f"unrecognized arguments: {' '.join(unknown)}")
    settings = [*parsed.overrides, *settings]
    left = list(arguments)
    for setting in settings:
        left.remove(setting)
    return [*left, *settings]


def _refuse_flags(message: str) -> NoReturn:
    sys.exit(f"error: {shown(message, 300)}; say l2c COMMAND --help; settings are given as key=value")


def _let_libraries_warn() -> None:
    """Print what libraries log from warnings on: Hydra's handler prints all notices, on the standard output."""
    if logging.root.level == logging.INFO:  # not under hydra.verbose
        logging.root.setLevel(logging.WARNING)
        logging.getLogger("l2c").setLevel(logging.INFO)


def _use_threads(cfg: DictConfig) -> None:
    """Set torch's number of threads where a command's `num_threads` says one."""
    if count := cfg.get("num_threads"):
        import torch

        torch.set_num_threads(count)


def _job(claimed: dict[Path, int]) -> contextlib.AbstractContextManager[None]:
    """Tell a job of a sweep from the others, so that none writes what another one has written."""
    config = HydraConfig.get()
    return job_of_sweep(config.job.num, claimed) if config.mode == RunMode.MULTIRUN else contextlib.nullcontext()


@contextlib.contextmanager
def _held(folder: Path, config_name: str) -> Iterator[None]:
    """Hold a run folder while a command works in it: no other run, nothing of others is overwritten, no leftovers."""
    if is_one_of_many():
        yield
        return
    check_writable(folder / "run")
    writes = next((command.writes for command in COMMANDS.values() if command.module == config_name), ())
    with locked(folder):
        check_results(folder, writes)
        if folder != Path.cwd():  # where anything may lie
            sweep(folder)
        yield


def _folder() -> Path:
    """Return the run folder, or the current one where there is none yet."""
    with contextlib.suppress(ValueError, OmegaConfBaseException):  # before Hydra has one
        return run_folder()
    return Path.cwd()


def _take_back() -> None:
    """Remove an empty run folder, and folders above it that are empty then, up to the current one."""
    if HydraConfig.initialized():
        with contextlib.suppress(OSError, ValueError, OmegaConfBaseException):  # in use, or never made
            folder = run_folder()
            for empty in (folder, *folder.parents):
                if empty in (Path.cwd(), *Path.cwd().parents):
                    break
                empty.rmdir()


def _fail(error: Exception) -> NoReturn:
    """Take back an empty run folder, say what is wrong, exit; where the reader of the output hung up, silently."""
    _take_back()
    if os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, BrokenPipeError):  # raised, Hydra would say of it that a job failed
        drop_output()
        sys.exit(1)
    sys.stderr.write(f"error: {sentence_of(error, _folder())}\n")
    sys.exit(1)
