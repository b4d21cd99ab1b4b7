"""The standard output where it takes nothing any more: its reader hung up, or its disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys


def drop_output() -> None:
    """Send what is printed from now on nowhere: the last flush would fail again where a print has."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def output_is_full(error: OSError) -> bool:
    """Return whether an error of a full disk is that of the standard output; one line more is printed to see."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) or error.filename is not None:
        return False
    try:
        print(flush=True)
    except (OSError, ValueError):
        return True
    return False


def of_output(error: OSError) -> str:
    """Say that the standard output takes no more."""
    return f"cannot print: {error.strerror or error}; send the output to another place"
