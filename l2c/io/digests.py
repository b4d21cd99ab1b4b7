"""The digest of a file, of a text, and of a JSON object, which holds its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHUNK = 1 << 20  # bytes read at a time
DIGEST = "digest"


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        OSError: if it cannot be read.

    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, `sha256:...`."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def sealed(content: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return a JSON object as it will be read, with a digest of its content in the field `digest`.

    Args:
        content: the object.
        options: of `json.dumps`.

    Raises:
        TypeError: if it holds an object that JSON cannot write.
        ValueError: if it holds itself, or a number that `options` forbid.

    """
    read: dict[str, Any] = json.loads(json.dumps(content, **options))
    return {**read, DIGEST: _digest(read)}


def check_sealed(content: Mapping[str, Any], mend: str) -> None:
    """Refuse a JSON object that is not what its digest says; one without a digest is taken.

    Args:
        content: the object.
        mend: what to do, for the message.

    Raises:
        ValueError: if it holds a digest that is another one.

    """
    if DIGEST in content and content[DIGEST] != _digest(content):
        raise ValueError(f"its content is not what its field {DIGEST} says, so that it was damaged or edited; {mend}")


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an object without its digest; spaces and the order of keys do not count."""
    plain = {name: value for name, value in content.items() if name != DIGEST}
    return digest_of_text(json.dumps(plain, sort_keys=True, separators=(",", ":")))
