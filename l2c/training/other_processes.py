"""The end of one of a run's processes is the end of all, with a sentence: none waits for it, or works on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import Popen

import lightning.pytorch as pl

EVERY = 0.5  # seconds between two looks
GRACE = 3.0  # seconds in which a process that is told by its connection ends by itself
OBSERVER = "child-process-observer"  # Lightning's thread
FIRST = "L2C_FIRST_PROCESS"  # the environment variable by which the others know the first one, also if it is gone


def lost(rank: int, count: int, other: str) -> str:
    """Return the sentence of a process that cannot go on without another one."""
    return (
        f"process {rank} of {count} cannot go on, because {other} has ended; its own message tells why; "
        "run the same command again"
    )


@contextmanager
def looking_after(trainer: pl.Trainer) -> Iterator[None]:
    """Look, in the `with` block, from the first process after those that its Trainer starts, and from them after it.

    Lightning's own observer ends the first process by SIGKILL where another one fails; those others work on for as
    long as they need nothing of the first.
    """
    others = _OtherProcesses(trainer)
    if trainer.world_size > 1:
        if hasattr(trainer.strategy.launcher, "procs"):
            os.environ[FIRST] = str(os.getpid())
        threading.Thread(target=others.look, daemon=True).start()
    try:
        yield
    finally:  # the work is done, or this process tells what is wrong itself
        others.done.set()
        if os.environ.get(FIRST) == str(os.getpid()):
            del os.environ[FIRST]


class _OtherProcesses:
    """Those of a run that a process sees: the first one those that it started, the others the first one."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.done = threading.Event()
        self._rank, self._count, self._launcher = trainer.global_rank, trainer.world_size, trainer.strategy.launcher
        self._started: list[Popen[bytes]] = []
        self._parent = os.environ.get(FIRST, str(os.getppid()))

    def look(self) -> None:
        """Look until the work is done; end this process and those that it started where another one ends before."""
        while not self.done.wait(EVERY):
            self._take_over()
            if (other := self._ended()) is None:
                continue
            time.sleep(GRACE)
            if not self.done.is_set():  # in C code that waits, or in a computation
                with suppress(OSError, ValueError):
                    sys.stderr.write(f"\nerror: {lost(self._rank, self._count, other)}\n")
                    sys.stderr.flush()
                for one in self._started:
                    one.kill()
                os._exit(1)

    def _take_over(self) -> None:
        """Take the processes that Lightning has started from its observer, which finds nobody then, and ends."""
        procs = getattr(self._launcher, "procs", None)
        if self._started or not procs or all(one.name != OBSERVER for one in threading.enumerate()):
            return
        self._started = [*procs]
        self._launcher.procs = self._started  # type: ignore[union-attr]
        procs.clear()

    def _ended(self) -> str | None:
        """Return which other process has ended before its work was done; None where none has."""
        for number, one in enumerate(self._started, self._rank + 1):
            if one.poll():
                how = f"code {one.returncode}" if one.returncode > 0 else f"signal {-one.returncode}"
                return f"process {number} ({how})"
        return "the process that started it" if self._rank and str(os.getppid()) != self._parent else None
