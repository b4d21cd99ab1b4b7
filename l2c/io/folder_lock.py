"""One run at a time in a folder: a locked file with the number of the process that holds it.

The operating system releases the lock when the process ends, however it ends, so that a lock cannot become stale.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # no such locks on this system: folders are not guarded there
    fcntl = None  # type: ignore[assignment]

NAME = ".run.lock"
BUSY = (errno.EACCES, errno.EAGAIN)


HELD: dict[Path, int] = {}  # folders that this process holds, and the thread that does


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this thread, which may hold it already.

    Raises:
        ValueError: if another process holds it; the message names the process.
        OSError: if the folder cannot be made or written.

    """
    place = Path(folder).resolve()
    if HELD.get(place) == threading.get_ident():
        yield
        return
    place.mkdir(parents=True, exist_ok=True)
    path = place / NAME
    handle = take(path, str(place), "wait for it to end, or choose another folder with hydra.run.dir=PATH")
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    HELD[place] = threading.get_ident()
    try:
        yield
    finally:
        del HELD[place]
        path.unlink(missing_ok=True)  # while it is held, so that nobody's else is removed
        os.close(handle)


def lock(handle: int) -> bool:
    """Lock an open file, without waiting; return whether it was free, or the file system knows no locks.

    Raises nothing: the lock ends when the handle is closed, by the end of the process at the latest.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY
    return True


def take(path: Path, what: str, mend: str) -> int:
    """Return the handle of a file that it makes and locks; one that was removed meanwhile is opened again.

    Args:
        path: the file.
        what: what is held by it, for the message.
        mend: what to do where another process holds it.

    Raises:
        ValueError: if another process holds it; the message names the process.
        OSError: if it cannot be made or written.

    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not lock(handle):
            holder = _holder(handle)
            os.close(handle)
            raise ValueError(f"{what} is in use by {holder}; {mend}")
        try:
            same = os.fstat(handle).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            return handle
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        content = json.loads(os.pread(handle, 1000, 0))
        return f"process {int(content['process'])} on {content['host']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another run"
