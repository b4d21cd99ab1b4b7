"""Files appear whole or not at all: write to a temporary name beside the target, then rename."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from l2c.io.bundled import at_home
from l2c.io.folder_lock import claim, is_one_of_many, lock, locked_file
from l2c.io.names import quoted, shown

MARK = ".part"  # in the names of temporary files
OURS = "-l2c-"  # in them too, so that no file of others has such a name by chance
LEFTOVER = re.compile(r"^\..*-l2c-[A-Za-z0-9_]{8}\.part(\.[A-Za-z0-9]+)?$")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | Path, *, once: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes `path`, on failure it vanishes.

    The content is on the disk before the name changes, so that a crash of the machine leaves the old file or the new.
    A link is followed. Where `once` is true a file that is there by then stays.

    Raises:
        OSError: if the folder cannot be made or written, the path is that of a folder or a device, or the disk is
            full; the message names the target.

    """
    target = _followed(path)
    with _beside(target) as temporary:
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would keep colleagues out
            _to_disk(temporary)
            if not (once and _linked(temporary, target)):
                temporary.replace(target)
            with suppress(OSError):  # some file systems cannot sync a folder
                _to_disk(target.parent)
        except Exception as error:
            if _of_the_disk(error, temporary):
                raise _cannot_write(target, error) from error
            raise


def _linked(temporary: Path, target: Path) -> bool:
    """Give a file its final name unless there is one; False where neither is so."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return True
    except OSError:  # the disk knows no links
        return target.is_file()
    return True


def _followed(path: str | Path) -> Path:
    """Return a path, where it is a link that to which it leads; `~` is the home folder."""
    try:
        found = at_home(path)
        return Path(os.path.realpath(found)) if found.is_symlink() else found
    except OSError as error:
        raise _cannot_write(Path(path), error) from error


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside a target, locked so that `sweep` leaves it; it vanishes if it is there."""
    while True:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_symlink():  # of a circle of links, which leads nowhere
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.exists() and not target.is_file():
                raise OSError(errno.EISDIR, "there is a folder or a device of that name")
            prefix, suffix = _prefix(target), f"{MARK}{target.suffix}"
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix)
        except (OSError, ValueError) as error:  # a ValueError: no path holds a zero byte
            raise _cannot_write(target, error) from error
        lock(handle)
        temporary = Path(name)
        if temporary.exists():  # else a sweep was faster
            break
        os.close(handle)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _prefix(target: Path) -> str:
    """Return the beginning of the names of a target's temporary files, which leaves room for a long name's end."""
    return f".{target.stem[:40]}{OURS}"


def write_text(path: str | Path, text: str, *, once: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path, once=once) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, *, once: bool = False, **options: Any) -> None:
    """Write a JSON file that people can read, whole or not at all; options as `json.dumps` takes them."""
    write_text(path, json.dumps(content, indent=1, **options) + "\n", once=once)


def copy_file(source: str | Path, path: str | Path) -> None:
    """Copy a plain file, whole or not at all; a file is its own copy.

    Raises:
        FileNotFoundError: if there is no plain file; pipes and devices are none, which may never end.
        OSError: if it cannot be read, or the copy not be written.

    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"no file at {shown(source, 300)}; give the path of a plain file")
    if not (Path(path).exists() and Path(source).samefile(path)):
        with replacing(path) as temporary, Path(source).open("rb") as read, temporary.open("wb") as written:
            shutil.copyfileobj(read, written)  # copyfile would lay a full disk to the source


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _of_the_disk(error: Exception, temporary: Path) -> bool:
    """Return whether writing failed because of the disk; safetensors and torch raise errors that are no OSErrors."""
    if isinstance(error, OSError):  # errors of writing name no file, those of opening do
        return error.errno is not None and error.filename in (None, str(temporary))
    words = str(error)
    return any(os.strerror(number) in words for number in FULL) or "failed writing file" in words


def _cannot_write(target: Path, error: Exception) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = "a file stands where its folder would be"
    full = any(os.strerror(number) in str(error) for number in FULL)
    mend = "free some space on its disk and run again" if full else "choose a folder that you may write to"
    if isinstance(error, OSError) and error.errno == errno.EISDIR:
        mend = "give another path"
    return OSError(f"cannot write {shown(target, 300)}: {reason}; {mend}")


def check_another(what: str, path: str | Path, **inputs: str | Path | None) -> None:
    """Refuse a file to be written that is one of those that are read.

    Args:
        what: what it is called, for the message.
        path: the file to be written.
        inputs: the files that are read, by what they are called; None is passed over.

    Raises:
        ValueError: if it is one of them.

    """
    for name, source in inputs.items():
        if source is not None and Path(path).exists() and Path(source).exists() and Path(path).samefile(source):
            raise ValueError(
                f"{what} and {name} are one file, {shown(path, 300)}, which would be lost; give another {what}"
            )


def check_writable(path: str | Path) -> None:
    """Check that a file can be written, before its content is computed; remove temporary files of a killed run.

    Raises:
        OSError: if its folder cannot be made or written.

    """
    target = _followed(path)
    with _beside(target):
        pass
    for found in target.parent.glob(f".*-????????{MARK}{target.suffix}"):
        if found.name.startswith(_prefix(target)):
            _remove_leftover(found)


@contextmanager
def output_file(what: str, path: str | Path, *, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the path of a file that a command is to write, and hold it while the command works.

    All is checked before the work that it costs. Of several processes of one run the first one holds it.

    Args:
        what: what the setting is called, for the message.
        path: the path as it was given.
        ours: says of a file of that name whether it is an earlier result, which may be replaced.

    Raises:
        ValueError: if it names a folder or the terminal, something else is there, which would be lost, another
            process is going to write it, or another job of this sweep has.
        OSError: if it cannot be written.

    """
    if str(path) == "-" or str(path).endswith(os.sep):
        raise ValueError(f"{what} must be the path of a file, got {quoted(str(path), 300)}; add the file's name")
    target = _followed(path)
    alone = nullcontext() if is_one_of_many() else locked_file(target, f"wait for it to end, or give another {what}")
    with _writable(target), alone:
        if target.is_file() and target.stat().st_size and not ours(target):
            raise ValueError(
                f"{what} is {shown(path, 300)}, where something else is that would be lost; give another path, or "
                "move that file away"
            )
        mend = f"put ${{hydra:job.num}} into the name, {what}='NAME-${{hydra:job.num}}{target.suffix}'"
        claim(target, f"{what} {shown(path, 300)}", mend)
        yield at_home(path)


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    """Check that a file can be written; remove the folders that were made for it and stay empty."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        check_writable(target)
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # something was written there
                folder.rmdir()


def sweep(folder: str | Path) -> list[Path]:
    """Remove the temporary files that killed processes left in a folder and below; return their paths.

    Those that a living process writes are left alone.
    """
    return [path for path in Path(folder).rglob(f".*{MARK}*") if _remove_leftover(path)]


def _remove_leftover(path: Path) -> bool:
    """Remove a temporary file that no process holds; return whether that was one."""
    if not LEFTOVER.match(path.name) or path.is_symlink() or not path.is_file():
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        stale = lock(handle)
        if stale:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)
    return stale
