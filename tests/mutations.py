"""Changes to the content of JSON files and to bytes, as damage and strangers make them."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

NUMBERS = (None, True, False, 0, 1, -1, 2, 5, 0.0, 1.0, 2.0, 0.5, -0.5, 1e-320, 1e30, -1e30, 1e300, 10**20, 1e6 + 1)
TEXTS = ("", "a", "0", "1", "\x00", "\x1b[31m", "a\n", "\u00e9", "..", "a/b", "sha256:" + 64 * "a", "c.safetensors")
OTHERS = ([], {}, [1], ["1"], [[]], [0.5, 0.5], {"a": 1}, [999.0, 1.0], [1, 2, 3, 4])
BYTES = (b"", b"\x00", b"\xff", b'"', b"{", b"[", b"9", b"e999", b"NaN", b"\\ud800", b",")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON content."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def mutated(content: Any, source: random.Random, values: Sequence[Any], names: Sequence[str] = ("new",)) -> Any:
    """Return a content with one or two changes: a value replaced, removed, doubled, swapped, or a field added."""
    changed = copy.deepcopy(content)
    for _ in range(source.choice((1, 1, 1, 2))):
        path = source.choice([p for p in places(changed) if p])
        target = changed
        for key in path[:-1]:
            target = target[key]
        act = source.choice(("replace", "replace", "replace", "drop", "more", "swap"))
        if act == "drop":
            del target[path[-1]]
        elif act == "replace":
            target[path[-1]] = copy.deepcopy(source.choice(values))
        elif isinstance(target, list):
            if act == "more":
                target.insert(path[-1], copy.deepcopy(target[path[-1]]))
            else:
                target[path[-1]] = target[source.randrange(len(target))]
        else:
            target[source.choice(names)] = copy.deepcopy(source.choice(values))
    return changed


def damaged(whole: bytes, source: random.Random) -> bytes:
    """Return bytes with a few of them cut out, put in or replaced, or cut short."""
    content = bytearray(whole)
    for _ in range(source.choice((1, 1, 3))):
        if not content:
            break
        place = source.randrange(len(content))
        act = source.randrange(4)
        if act == 0:
            content[place] = source.randrange(256)
        elif act == 1 and place:
            del content[place:]
        else:
            content[place : place + source.choice((0, 1, 1, 20))] = source.choice(BYTES)
    return bytes(content)


def archive_damaged(whole: bytes, source: random.Random) -> bytes:
    """Return an archive with bytes changed, or with the heads of its members changed and their checksums right."""
    if source.random() < 0.5:
        return damaged(whole, source)
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            member = old.read(name)
            if source.random() < 0.6:
                member = damaged(member[:140], source) + member[140:]
            new.writestr(source.choice((name, name, name, name, "x.npy", f"../{name}")), member)
    return content.getvalue()
