"""The processes that parts run in: what fails or hangs there ends there."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.report import Report
from benchmarks.gpu.task import LeftOut, Task, Value, device_of
from l2c.report.machine import machine
from l2c.sampling.execution.compiled import short_reason

SOFT = 0.85  # of its time, after which a part begins nothing new


def run_parts(parts: list[Part], settings: Settings, report: Report, *, minutes: float) -> None:
    """Run parts one after the other, each in a process of its own, within some minutes altogether."""
    end = time.monotonic() + 60 * minutes
    for i, part in enumerate(parts):
        left = max(0.0, end - time.monotonic())
        budget = left * part.share / sum(other.share for other in parts[i:])
        print(f"{part.name}: {part.does} (at most {budget:.0f} s)", flush=True)
        report.begin(part.name)
        start = time.monotonic()
        status, reason = _run(part, settings, report, budget)
        report.end(part.name, status, reason, time.monotonic() - start)
        print(f"{part.name}: {status}{'' if reason is None else ': ' + reason}", flush=True)


def _run(part: Part, settings: Settings, report: Report, budget: float) -> tuple[str, str | None]:
    """Run one part in a fork, take what it sends, end it when its time is over; return status and reason."""
    context = multiprocessing.get_context("fork")  # what is imported already is not imported again
    ours, theirs = context.Pipe(duplex=False)
    deadline = time.monotonic() + budget
    process = context.Process(target=_child, args=(part, settings, theirs, deadline - (1 - SOFT) * budget))
    process.start()
    theirs.close()
    verdict: tuple[str, str | None] | None = None
    try:
        while verdict is None and ours.poll(max(0.0, deadline - time.monotonic())):
            kind, *content = ours.recv()
            if kind == "line":
                report.line(part.name, *content)
            elif kind == "machine":
                report.machine(*content)
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
    return verdict


def _end(process: Any) -> None:
    """End a part's process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it may not lead a group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(10)


def _child(part: Part, settings: Settings, connection: Connection, deadline: float) -> None:
    os.setsid()  # compilers' helpers end with it
    warnings.simplefilter("default")
    send = partial(_send, connection)
    try:
        device = device_of(settings.device)
        send("machine", machine(device))
        task = Task(device, settings.tiny, settings.router, deadline, partial(send, "line"))
        measure = importlib.import_module(f"benchmarks.gpu.{part.module}").measure
        measure(task, *part.options)
        send("end", *(("done", None) if task.in_time else ("stopped", "its time was over before all was measured")))
    except LeftOut as reason:
        send("end", "left out", str(reason))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("l2c", "benchmarks"):
            raise
        send("end", "left out", f"the package {error.name} is not installed")
    except Exception as error:  # whatever it is, the other parts go on
        traceback.print_exc()
        send("end", "failed", short_reason(error))


def _send(connection: Connection, kind: str, *content: Value | dict[str, Value]) -> None:
    connection.send((kind, *content))
