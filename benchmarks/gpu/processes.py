"""The processes that parts run in: what fails or hangs there ends there."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.report import Report
from benchmarks.gpu.task import LeftOut, OutOfTime, Task, Value, device_of, lacking_module
from l2c.sampling.execution.compiled import short_reason

SOFT = 0.85  # of its time, after which a part begins nothing new


def run_parts(parts: list[Part], settings: Settings, report: Report, *, minutes: float) -> list[str]:
    """Run parts one after the other, each in a process of its own, within some minutes; return how each ended."""
    end = time.monotonic() + 60 * minutes
    statuses = []
    for i, part in enumerate(parts):
        left = max(0.0, end - time.monotonic())
        budget = left * part.share / sum(other.share for other in parts[i:])
        print(f"{part.name}: {part.does} (at most {budget:.0f} s)", flush=True)
        report.begin(part.name)
        start = time.monotonic()
        with _ended_by_a_signal():
            status, reason = _run(part, settings, report, budget)
        report.end(part.name, status, reason, time.monotonic() - start)
        print(f"{part.name}: {status}{'' if reason is None else ': ' + reason}", flush=True)
        statuses.append(status)
    return statuses


@contextlib.contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as an exception does, so that the part's process ends with it."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(part: Part, settings: Settings, report: Report, budget: float) -> tuple[str, str | None]:
    """Run one part in a fork, take what it sends, end it when its time is over; return status and reason."""
    context = multiprocessing.get_context("fork")  # what is imported already is not imported again
    ours, theirs = context.Pipe(duplex=False)
    deadline = time.monotonic() + budget
    process = context.Process(target=_child, args=(part, settings, theirs, deadline - (1 - SOFT) * budget))
    verdict: tuple[str, str | None] | None = None
    lines = 0
    try:
        process.start()
        theirs.close()
        while verdict is None and ours.poll(max(0.0, deadline - time.monotonic())):
            kind, *content = ours.recv()
            if kind == "line":
                lines += 1
                report.line(part.name, *content)
            elif kind == "machine":
                report.machine(part.name, *content)
            else:
                verdict = content[0], content[1]
        if verdict is None:
            verdict = "stopped", f"not through within its {budget:.0f} s"
    except EOFError:
        process.join(5)
        verdict = "failed", f"its process ended with code {process.exitcode}"
    finally:
        _end(process)
        ours.close()
    return ("failed", "it measured nothing") if verdict[0] == "done" and not lines else verdict


def _end(process: Any) -> None:
    """End a part's process and all that it has started."""
    if process.pid is None:  # it has not begun
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it may not lead a group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(10)


def _child(part: Part, settings: Settings, connection: Connection, deadline: float) -> None:
    os.setsid()  # compilers' helpers end with it
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    warnings.simplefilter("default")
    send = partial(_send, connection)
    try:
        device = device_of(settings.device)
        task = Task(device, settings.tiny, settings.router, deadline, partial(send, "line"))
        send("machine", task.machine)
        measure = importlib.import_module(f"benchmarks.gpu.{part.module}").measure
        measure(task, *part.options)
        send("end", "done", None)
    except LeftOut as reason:
        send("end", "left out", str(reason))
    except OutOfTime as reason:
        send("end", "stopped", str(reason))
    except Exception as error:  # whatever it is, the other parts go on
        lacking = lacking_module(error)
        if lacking is None:
            traceback.print_exc()
        send("end", *(("failed", short_reason(error)) if lacking is None else ("left out", lacking)))


def _send(connection: Connection, kind: str, *content: Value | dict[str, Value]) -> None:
    connection.send((kind, *content))
