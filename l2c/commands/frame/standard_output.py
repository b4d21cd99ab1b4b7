"""The standard output where it takes nothing any more: its reader hung up, or its disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def drop_output() -> None:
    """Send what is printed from now on nowhere: the last flush would fail again where a print has."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def output_is_full(error: OSError) -> bool:
    """Return whether an error of a full disk may be that of the standard output; nothing more is written to see.

    What could not be printed is kept, and fails again; an unbuffered output that can be full keeps nothing.
    """
    if error.errno not in FULL or error.filename is not None:
        return False
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return _unbuffered() and not _endless()


def disks_full(error: OSError, folder: Path, mend: str) -> str:
    """Say that the standard output takes no more; where it may be the disk of a folder, name that too."""
    apart = not _unbuffered()
    with contextlib.suppress(OSError, ValueError):
        apart = apart and os.fstat(sys.stdout.fileno()).st_dev != folder.stat().st_dev
    if apart:
        return of_output(error)
    why = f"{error.strerror or error}; send the output to another place"
    return f"cannot print, or cannot write in {folder}: {why}, or {mend}"


def _unbuffered() -> bool:
    return bool(getattr(sys.stdout, "write_through", False))


def _endless() -> bool:
    """Return whether the standard output is a pipe, a socket or a terminal, which no disk fills."""
    with contextlib.suppress(OSError, ValueError):
        mode = os.fstat(sys.stdout.fileno()).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or sys.stdout.isatty()
    return True


def of_output(error: OSError) -> str:
    """Say that the standard output takes no more."""
    return f"cannot print: {error.strerror or error}; send the output to another place"
