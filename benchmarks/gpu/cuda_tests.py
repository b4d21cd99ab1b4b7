"""The tests that need a CUDA device, in a process of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.task import LeftOut, Task

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/speed/test_cuda.py", "tests/sampling/test_executor.py")
NAMED = "cuda or captured"


def measure(task: Task) -> None:
    """Run them; every line of a failure is shown, the count and the first failures are recorded.

    Raises:
        LeftOut: there is no pytest.
        RuntimeError: a test failed, or time was over.

    """
    if importlib.util.find_spec("pytest") is None:
        raise LeftOut("the package pytest is not installed")
    left = max(5.0, task.deadline - time.monotonic())
    files = FILES[:1] if task.tiny else FILES
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", NAMED]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the tests were not through in {left:.0f} s") from error
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["nothing was said"]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    task.send("pytest", {"result": lines[-1].strip("= "), "first failures": "; ".join(failures[:5])[:500] or None})
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], sep="\n", flush=True)
        raise RuntimeError(f"pytest ended with code {done.returncode}: {lines[-1].strip('= ')}")
