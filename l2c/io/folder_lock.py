"""One run at a time in a folder, and at a file: a locked file with the number of the process that holds it.

The operating system releases the lock when the process ends, however it ends, so that a lock cannot become stale.
The jobs of a sweep follow each other in one process, so that locks do not part them: each claims what it will write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from l2c.io.names import shown

try:
    import fcntl
except ModuleNotFoundError:  # no such locks on this system: folders are not guarded there
    fcntl = None  # type: ignore[assignment]

NAME = ".run.lock"
BUSY = (errno.EACCES, errno.EAGAIN)
STRANGE = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO, errno.ENODEV)  # of links, folders and devices
OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
MOST = 1000  # bytes of a lock
LONGEST = 240  # bytes of a file's name that leave room for the lock's
# Numbers of processes that share a run, of which the first one is 0; `data.processes` checks them.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")

HELD: dict[Path, int] = {}  # locks that this process holds, and the thread that does

# Of the sweep that this process makes: the number of its job, and the job that claimed a path first.
JOB: ContextVar[tuple[int, dict[Path, int]] | None] = ContextVar("job of a sweep", default=None)


@contextmanager
def job_of_sweep(number: int, claimed: dict[Path, int]) -> Iterator[None]:
    """Make what is claimed in the `with` block that of one job of a sweep.

    Args:
        number: the job's number.
        claimed: the job that claimed a path first, one mapping for all jobs of the sweep; it is added to.

    """
    token = JOB.set((number, claimed))
    try:
        yield
    finally:
        JOB.reset(token)


def claim(path: Path, what: str, mend: str) -> None:
    """Claim a path for this job of a sweep, which replaces what is there; outside of sweeps nothing is done.

    Args:
        path: the path, no link.
        what: what it is to the job and its name, for the message.
        mend: how to give each job its own.

    Raises:
        ValueError: if another job of the sweep has claimed it, and its results would be lost.

    """
    if (job := JOB.get()) is None:
        return
    number, claimed = job
    first = claimed.setdefault(path.parent.resolve() / path.name, number)
    if first != number:
        raise ValueError(f"{what} is also that of job {first} of this sweep, whose results would be lost; {mend}")


def is_one_of_many() -> bool:
    """Return whether this process works for another one's run, which holds what they write."""
    names = RANKS[:1] if RANKS[0] in os.environ else RANKS  # torchrun's decides, also within other launchers
    return any(os.environ.get(name, "0").strip().lstrip("+0") for name in names)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this thread, which may hold it already.

    Raises:
        ValueError: if another process holds it (the message names the process), another job of this sweep has
            worked in it, or another file than a lock has that name.
        OSError: if the folder cannot be made or written.

    """
    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    with _held(place / NAME, str(place), "wait for it to end, or choose another folder with hydra.run.dir=PATH"):
        mend = "leave hydra.sweep.subdir out, or say hydra.sweep.subdir='NAME-${hydra.job.num}'"
        claim(place, f"the run folder {shown(place, 300)}", mend)
        yield


@contextmanager
def locked_file(path: Path, mend: str = "wait for it to end, or give another path") -> Iterator[None]:
    """Hold the path of a file that is to be written, by a lock beside it; see `locked`.

    Args:
        path: the path, no link; the file need not be there.
        mend: what to do where another process holds it.

    """
    place = path.parent.resolve() / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with _held(lock_of(place), str(path), mend):
        yield


def lock_of(path: Path) -> Path:
    """Return the path of the lock of a file."""
    long = len(os.fsencode(path.name)) > LONGEST
    name = f"{path.name[:40]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}" if long else path.name
    return path.with_name(f".{name}.lock")


@contextmanager
def _held(path: Path, what: str, mend: str) -> Iterator[None]:
    """Hold a lock for this thread, which may hold it already; the file vanishes in the end."""
    if HELD.get(path) == threading.get_ident():
        yield
        return
    handle = take(path, what, mend)
    HELD[path] = threading.get_ident()
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        del HELD[path]
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
    """Return the handle of a lock's file that it makes and locks; one that was removed meanwhile is opened again.

    Nothing is changed in a file that is there: it may be somebody else's.

    Args:
        path: the file.
        what: what is held by it, for the message.
        mend: what to do where another process holds it.

    Raises:
        ValueError: if another process holds it (the message names the process), or what is there is no lock of ours.
        OSError: if it cannot be made or written.

    """
    while True:
        try:
            handle = os.open(path, OPEN, 0o666)
        except OSError as error:
            if error.errno in STRANGE:
                raise _no_lock(path) from error
            raise
        kept = False
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise _no_lock(path)
            free, holder = lock(handle), _holder(handle)
            if not free:
                raise ValueError(f"{shown(what, 300)} is in use by {holder or 'another run'}; {mend}")
            if found.st_size and holder is None:
                raise _no_lock(path)
            with suppress(FileNotFoundError):
                kept = found.st_ino == path.lstat().st_ino
            if kept:
                return handle
        finally:
            if not kept:
                os.close(handle)


def _no_lock(path: Path) -> ValueError:
    return ValueError(
        f"{shown(path, 300)} is no lock of this package, which needs that name and would lose what is there; move it "
        "away"
    )


def _holder(handle: int) -> str | None:
    """Return which process wrote a lock; None where it is none of ours, or has not been written yet."""
    try:
        content = json.loads(os.pread(handle, MOST, 0))
        process, host = content["process"], content["host"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(process) is not int or not 0 < process < 2**63 or not isinstance(host, str):
        return None
    return f"process {process} on {shown(host)}"
