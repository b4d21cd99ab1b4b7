"""The console script `l2c`: list the commands, find one by its name, start it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from l2c.commands.frame.interrupts import interrupts_kept
from l2c.commands.frame.standard_output import drop_output, of_output
from l2c.commands.frame.table import COMMANDS, TRACEBACK, override
from l2c.data.processes import check_environment
from l2c.io.bundled import at_home
from l2c.io.memory import NO_MEMORY, out_of_memory, short_of_memory
from l2c.io.names import near_names
from l2c.io.version import __version__

MEND = "free some space on its disk, or choose another path"
FLAGS = (  # Hydra's
    *("--help", "-h", "--cfg", "-c", "--resolve", "--multirun", "-m", "--info", "-i", "--version", "--hydra-help"),
    *("--run", "-r", "--package", "-p", "--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp"),
    *("--shell-completion", "-sc", "--experimental-rerun"),
)


def main() -> None:
    """Start the command that the first argument names, with the others."""
    _make_ready()
    with _ended_quietly():
        _chosen()


@contextlib.contextmanager
def _ended_quietly() -> Iterator[None]:
    """Exit without a traceback where the reader of the output hangs up, `head` for example, or no memory is left."""
    try:
        try:
            yield
        except SystemExit as stop:
            if stop.code:
                raise
        sys.stdout.flush()  # also where Hydra left after its help
    except OSError as error:
        if out_of_memory(error):
            sys.exit(f"error: {NO_MEMORY}")
        drop_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        if os.environ.get(TRACEBACK) or error.errno is None or error.filename is not None:
            raise
        sys.exit(f"error: {of_output(error)}")
    except KeyboardInterrupt:  # before a command's work, or after it
        sys.stderr.write("error: interrupted\n")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if os.environ.get(TRACEBACK) or not (out_of_memory(error) or short_of_memory()):
            raise
        sys.exit(f"error: {NO_MEMORY}")


def _make_ready() -> None:
    """Take what a shell may leave a command: closed streams, a stdout of few characters, a folder that is gone.

    Neither logs nor pictures need anything of the terminal.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would take its number, and get what is printed
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    logging.raiseExceptions = False  # a log that cannot be printed would be a traceback for each line
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; a wrong one would end a command after its work
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        Path.cwd()
    except OSError:
        sys.exit("error: the current folder is gone; go to another one (cd) and run again")


def _at_home(word: str) -> str:
    """Return `name=~/...` with the home folder in the place of `~`, which a shell leaves there behind the sign."""
    name, sign, value = word.partition("=")
    found = re.fullmatch(r"(['\"]?)(~[\w.-]*(?:/[^,\\]*)?)\1", value, re.DOTALL)
    if sign and found:
        return override(name, at_home(found[2]))
    several = r"(?<![^,\[])~[\w.-]*/[^,\[\]'\"\\]*"  # of a sweep or a list
    return name + sign + re.sub(several, lambda one: override("", at_home(one[0])).removeprefix("="), value)


def _chosen() -> None:
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name in ("-V", "--version"):
        print(f"l2c {__version__}")
    elif name not in COMMANDS:
        sys.stderr.write(f"error: unknown command {name!r}; {near_names(name, list(COMMANDS))}\n")
        sys.exit(1)
    else:
        start(name, arguments)


def overview() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "l2c: learned layer caching of diffusion transformers",
            "",
            "usage: l2c COMMAND [group=choice] [key=value]",
            "",
            *lines,
            "",
            "`l2c COMMAND --help` shows a command's settings, `l2c --version` the version.",
        ]
    )


def script(name: str) -> None:
    """Start a command from its script in a checkout."""
    _make_ready()
    with _ended_quietly():
        start(name, sys.argv[1:])


def start(name: str, arguments: list[str]) -> None:
    """Start a command; one with a Hydra config imports its work after the config was composed and checked."""
    command = COMMANDS[name]
    try:
        arguments = [*map(_at_home, arguments)]
        check_environment()  # before Lightning and torch read it while they are imported
    except ValueError as error:
        sys.exit(f"error: {error}")
    module = f"l2c.commands.{command.module}"
    if not command.hydra:
        try:
            with interrupts_kept():
                import_module(module).main(arguments)
        except (ValueError, OSError, MemoryError) as error:
            if isinstance(error, BrokenPipeError) or os.environ.get(TRACEBACK):
                raise
            from l2c.commands.frame.sentences import sentence_of

            sys.exit(f"error: {sentence_of(error, Path.cwd(), MEND)}")
        return
    unknown = [word for word in arguments if re.match("--?[a-z]", word) and word.partition("=")[0] not in FLAGS]
    if unknown:
        near = near_names(unknown[0], list(FLAGS))
        sys.exit(f"error: unknown option {unknown[0]!r}; {near}; settings are given as key=value")
    from l2c.commands.frame.entry import run_configured

    run_configured(command.module, lambda cfg: import_module(module).main.task(cfg), arguments)
