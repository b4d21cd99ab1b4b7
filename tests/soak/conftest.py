"""What the long tests share: a record of what was counted, printed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COUNTED: list[str] = []


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return the function that notes counts by name, for the summary of the run."""

    def note(**counts: object) -> None:
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
        COUNTED.append(f"{request.node.name}: {told}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was counted."""
    for line in COUNTED:
        terminalreporter.write_line(line)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return an empty folder on the disk, and one on another file system, in memory."""
    if request.param == "disk":
        yield tmp_path
        return
    import tempfile

    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no file system in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
