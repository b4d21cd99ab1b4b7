"""The tests that need a CUDA device: what each gave is sent as it ends."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.task import OutOfTime, Task

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/speed/test_cuda.py", "tests/sampling/test_executor.py")
NAMED = "cuda or captured"
SLOW = "compiled"  # what a compiler needs when it starts cold is longer than all the rest


def measure(task: Task) -> None:
    """Run them.

    Raises:
        OutOfTime: some were not begun.
        RuntimeError: a test failed, or there was none.

    """
    run_tests(task, FILES[:1] if task.tiny else FILES, named=NAMED)


def run_tests(task: Task, files: tuple[str, ...], *, named: str) -> None:
    """Run the tests of some files, of this repository or anywhere, whose names match; see `measure`."""
    watcher = Watcher(task)
    os.chdir(ROOT)  # this process has no other use for where it was
    code = pytest.main(["-q", "-p", "no:cacheprovider", *files, "-k", named], plugins=[watcher])
    told = ", ".join(f"{count} {outcome}" for outcome, count in watcher.outcomes.items()) or "none was run"
    task.send("all tests", {"chosen": watcher.chosen, "result": told})
    if watcher.outcomes["failed"] or code not in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"the tests ended with code {int(code)}: {told}")
    left = watcher.chosen - watcher.outcomes.total()
    if left > 0:
        raise OutOfTime(f"{left} of {watcher.chosen} tests were not begun in time")


class Watcher:
    """A plugin of pytest that sends each result, lets slow tests wait, and begins none when time is over.

    Attributes:
        chosen: number of tests that are to run.
        outcomes: how many passed, failed, were skipped.

    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.chosen = 0
        self.outcomes: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)  # after what is not named is left out
    def pytest_collection_modifyitems(self, session: Any, items: list[Any]) -> None:
        """Put the slow tests last."""
        items.sort(key=lambda item: SLOW in item.name)
        self.chosen = len(items)

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool | None:
        """Begin a test only in time."""
        if self.task.in_time:
            return None
        item.session.shouldstop = "time is over"
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Send what a test gave, or what kept it from running."""
        if report.when != "call" and report.passed:
            return
        self.outcomes[report.outcome] += 1
        self.task.send(
            "tests",
            {
                "test": report.nodeid.rpartition("/")[2],
                "result": report.outcome,
                "seconds": round(report.duration, 2),
                "why": _reason(report),
            },
        )


def _reason(report: Any) -> str | None:
    """Return the line that says why a test did not pass."""
    if report.passed:
        return None
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return str(report.longrepr[2]).partition("\n")[0]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr)).partition("\n")[0][:300]
