"""Fetch one large file: resumed after a break, checked, and there whole or not at all.

No public function of huggingface_hub or pooch goes on with a broken download of any address.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from tqdm.auto import tqdm

from l2c.io.atomic import copy_file
from l2c.io.bundled import at_home
from l2c.io.digests import CHUNK, sha256_of
from l2c.io.folder_lock import take
from l2c.io.names import shown

HEADERS = {"User-Agent": "l2c"}
TIMEOUT = 60.0  # seconds without a byte


def direct_address(url: str) -> str:
    """Return the address of the file itself for a Google Drive page; other addresses as they are."""
    match = re.search(r"drive\.google\.com/file/d/([\w-]+)", url)
    return f"https://drive.usercontent.google.com/download?id={match[1]}&export=download&confirm=t" if match else url


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a file; an interrupted one continues where it stopped.

    The bytes so far lie in `<path>.part`, beside a `<path>.part.tag` with the server's mark of the version, so
    that a file which has changed in between is fetched anew. The size is checked against what the server
    announces.

    Args:
        url: the address.
        path: path of the file; an existing file that passes the checks is left alone.
        size: bytes it must have, where known.
        sha256: hexadecimal digest it must have, where known.
        progress: show a bar.

    Raises:
        OSError: if there is no connection or no such file, the download is cut short, or the disk is full; what is
            there already is kept for next time.
        ValueError: if the file is not the expected one; it is removed. Also if the address is none of the web, or
            another process downloads to this path.

    """
    if not url.lower().startswith(("https://", "http://")):
        raise ValueError(f"an address begins with https:// or http://, got {shown(url)}; copy a local file instead")
    target = Path(path)
    if target.is_file():
        _check(target, size=size, sha256=sha256, url=url)
        return target
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _held(part):
        _fetch_whole(url, target, part, size=size, sha256=sha256, progress=progress)
    return target


@contextmanager
def _held(part: Path) -> Iterator[None]:
    """Hold a partial file, to which two downloads would write at once; an empty one vanishes."""
    handle = take(part, str(part), "wait for it to end, or download to another path")
    try:
        yield
    finally:
        if part.exists() and not _size(part):
            part.unlink()
        os.close(handle)


def _fetch_whole(url: str, target: Path, part: Path, *, size: int | None, sha256: str | None, progress: bool) -> None:
    """Fetch a file by way of its partial file, which is held."""
    tag = target.with_name(target.name + ".part.tag")
    try:
        _fetch(url, part, tag, size=size, progress=progress)
    except urllib.error.HTTPError as error:
        raise OSError(
            f"{url} answers {error.code} {error.reason}; check the address, or fetch the file by hand to {target}"
        ) from error
    except urllib.error.URLError as error:
        raise OSError(
            f"cannot reach {url}: {error.reason}; check the network and run again, or fetch the file elsewhere and "
            f"copy it to {target}"
        ) from error
    except (HTTPException, ConnectionError, TimeoutError) as error:
        raise _cut_short(url, part, tag, None, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"the disk of {target.parent} is full after {_size(part)} bytes of {url}; free some space and run again, "
            "it continues from there"
        ) from error
    _check(part, size=size, sha256=sha256, url=url)
    part.replace(target)
    tag.unlink(missing_ok=True)


def keep_local(source: str | Path, path: str | Path, *, sha256: str | None = None) -> Path:
    """Copy a file of this machine to where a download would have put it.

    Args:
        source: the file.
        path: path of the copy.
        sha256: hexadecimal digest it must have, where known.

    Raises:
        OSError: if there is no such file, or the copy cannot be written.
        ValueError: if the file has another digest, or another file is where the copy would be.

    """
    source, target = at_home(source), Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"no file at {source}; give the path of the weights on this machine")
    if sha256 is not None and (digest := sha256_of(source)) != sha256.lower():
        raise ValueError(f"{source} has the SHA-256 {digest} instead of {sha256}; copy the whole file again")
    if target.is_file() and not target.samefile(source) and sha256_of(target) != sha256_of(source):
        raise ValueError(f"{target} is there already and is another file; give another path, or move that file away")
    copy_file(source, target)
    return target


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _cut_short(url: str, part: Path, tag: Path, total: int | None, reason: str) -> OSError:
    of = f" of {total}" if total is not None else ""
    goes_on = "it goes on where it stopped" if tag.is_file() else "it begins anew, the server names no versions"
    return OSError(
        f"the download of {url} was cut short after {_size(part)}{of} bytes, which are in {part} ({reason}); run the "
        f"same command again, {goes_on}, or fetch the file by hand to {part.with_suffix('')}"
    )


def _fetch(url: str, part: Path, tag: Path, *, size: int | None, progress: bool) -> None:
    """Append what is missing to the partial file."""
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310 - https or http, as `download` checks
    start = _size(part)
    if start and tag.is_file():
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - https or http
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing left to send: complete, or longer than the server's file
            raise
        if (error.headers.get("Content-Range") or "").rpartition("/")[2] == str(start):
            return
        os.truncate(part, 0)
        request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310 - https or http
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - https or http
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(
                f"{url} gives a web page, not a file; open it in a browser and save the file to "
                f"{part.with_suffix('')}"
            )
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else size
        if size is not None and total != size:
            raise ValueError(
                f"{url} has {total} bytes, but {size} are expected; it is another file than the known one"
            )
        missing = (total or 0) - start
        free = shutil.disk_usage(part.parent).free
        if missing > free:
            raise OSError(
                f"{url} needs {missing} more bytes, but only {free} are free in {part.parent}; free some space first"
            )
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if mark and not mark.startswith("W/"):
            tag.write_text(mark, encoding="utf-8")
        else:
            tag.unlink(missing_ok=True)
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise _cut_short(url, part, tag, total, "the connection closed early")


def _check(path: Path, *, size: int | None, sha256: str | None, url: str) -> None:
    """Refuse a file of another size or digest; a downloaded one is removed."""
    got_size = _size(path)
    problem = None
    if size is not None and got_size != size:
        problem = f"{got_size} bytes instead of {size}"
    elif sha256 is not None:
        digest = sha256_of(path)
        if digest != sha256.lower():
            problem = f"the SHA-256 {digest} instead of {sha256}"
    if problem is None:
        return
    if path.suffix == ".part":
        path.unlink()
        raise ValueError(f"what came from {url} has {problem} and was removed; run again, or check the address")
    raise ValueError(f"{path} is there already but has {problem}; delete it and run again")
