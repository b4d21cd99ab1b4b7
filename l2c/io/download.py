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
from http.client import HTTPException
from pathlib import Path

from tqdm.auto import tqdm

from l2c.io.atomic import check_writable, copy_file, write_json
from l2c.io.bundled import at_home
from l2c.io.digests import CHUNK, sha256_of
from l2c.io.folder_lock import locked_file
from l2c.io.json_fields import parse_file
from l2c.io.names import shown

FORMAT = "l2c-download"  # of what says that a partial file is ours
LARGEST_TAG = 2**16  # bytes
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

    The bytes so far lie in `<path>.part`, beside a `<path>.part.tag` with the address and the server's mark of the
    version, so that a file which has changed in between is fetched anew. Files of these names that no download has
    written are not touched. The size is checked against what the server announces.

    Args:
        url: the address.
        path: path of the file; an existing file that passes the checks is left alone.
        size: bytes it must have, where known.
        sha256: hexadecimal digest it must have, where known.
        progress: show a bar.

    Raises:
        OSError: if there is no connection or no such file, the download is cut short, or the disk is full; what is
            there already is kept for next time.
        ValueError: if the file is not the expected one; it is removed. Also if the address is none of the web,
            another process downloads to this path, or a partial file is there that no download has written.

    """
    if not url.lower().startswith(("https://", "http://")):
        raise ValueError(f"an address begins with https:// or http://, got {shown(url)}; copy a local file instead")
    target = Path(path)
    part, tag = (target.with_name(target.name + end) for end in (".part", ".part.tag"))
    if not target.is_file():
        with locked_file(target, "wait for it to end, or download to another path"):
            if not target.is_file():  # which another process may have fetched meanwhile
                _check_ours(part, tag)
                check_writable(tag)  # which removes what a kill left of it
                try:
                    _fetch_whole(url, target, part, tag, size=size, sha256=sha256, progress=progress)
                finally:
                    if not _size(part):
                        part.unlink(missing_ok=True)
                        tag.unlink(missing_ok=True)
                return target
    if problem := _problem(target, size=size, sha256=sha256):
        raise ValueError(f"{target} is there already but has {problem}; delete it and run again")
    if _version(tag) is not None and not part.exists():  # of a download that was killed at its end
        tag.unlink(missing_ok=True)
    return target


def _check_ours(part: Path, tag: Path) -> None:
    """Refuse what lies where a download keeps its bytes, and what it says of them, unless a download wrote it."""
    for path in (part, tag):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _foreign(path)
    if tag.exists() and _version(tag) is None:
        raise _foreign(tag)
    if part.exists() and not tag.exists():
        raise _foreign(part)


def _foreign(path: Path) -> ValueError:
    return ValueError(
        f"{shown(path, 300)} is where a download keeps what it has so far, but no download of this version wrote it; "
        "move it away"
    )


def _version(tag: Path) -> dict[str, str] | None:
    """Return the address and the server's mark of the version of a partial file; None if it has none."""
    try:
        content = parse_file(tag) if _size(tag) <= LARGEST_TAG else None
    except (ValueError, OSError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    known = {name: text for name in ("url", "mark") if isinstance(text := content.get(name), str)}
    return known if len(known) == 2 else None


def _fetch_whole(
    url: str, target: Path, part: Path, tag: Path, *, size: int | None, sha256: str | None, progress: bool
) -> None:
    """Fetch a file by way of its partial file, which is held."""
    try:
        _fetch(url, part, tag, size=size, progress=progress)
    except urllib.error.HTTPError as error:
        raise OSError(
            f"{url} answers {error.code} {shown(error.reason)}; check the address, or fetch the file by hand to "
            f"{target}"
        ) from error
    except urllib.error.URLError as error:
        raise OSError(
            f"cannot reach {url}: {shown(error.reason, 300)}; check the network and run again, or fetch the file "
            f"elsewhere and copy it to {target}"
        ) from error
    except (HTTPException, ConnectionError, TimeoutError) as error:
        raise _cut_short(url, part, tag, None, shown(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"the disk of {target.parent} is full after {_size(part)} bytes of {url}; free some space and run again, "
            "it continues from there"
        ) from error
    if problem := _problem(part, size=size, sha256=sha256):
        part.unlink()
        raise ValueError(f"what came from {url} has {problem} and was removed; run again, or check the address")
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
    known = _version(tag) or {}
    goes_on = "it goes on where it stopped" if known.get("mark") else "it begins anew, the server names no versions"
    return OSError(
        f"the download of {url} was cut short after {_size(part)}{of} bytes, which are in {part} ({reason}); run the "
        f"same command again, {goes_on}, or fetch the file by hand to {part.with_suffix('')}"
    )


def _fetch(url: str, part: Path, tag: Path, *, size: int | None, progress: bool) -> None:
    """Append what is missing to the partial file."""
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310 - https or http, as `download` checks
    start, known = _size(part), _version(tag) or {}
    if start and known.get("mark") and known.get("url") == url:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", known["mark"])
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - https or http
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # nothing left to send: complete, or longer than the server's file
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
        if start and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise ValueError(f"{url} sends another part of the file than was asked for; delete {part} and run again")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdecimal() else size
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
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if mark.startswith("W/") or not (mark.isascii() and mark.isprintable()):
            mark = ""
        if part.exists() and not start:  # else its bytes would be of another version than the tag says
            os.truncate(part, 0)
        write_json(tag, {"format": FORMAT, "url": url, "mark": mark})
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise _cut_short(url, part, tag, total, "the connection closed early")


def _problem(path: Path, *, size: int | None, sha256: str | None) -> str | None:
    """Return what a file has in the place of its size or digest; None where they are as they should be."""
    got_size = _size(path)
    if size is not None and got_size != size:
        return f"{got_size} bytes instead of {size}"
    if sha256 is not None and (digest := sha256_of(path)) != sha256.lower():
        return f"the SHA-256 {digest} instead of {sha256}"
    return None
