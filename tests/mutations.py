"""Changes to the content of JSON files and to bytes, as damage and strangers make them."""

from __future__ import annotations

import copy
import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

NUMBERS = (None, True, False, 0, 1, -1, 2, 5, 0.0, 1.0, 2.0, 0.5, -0.5, 1e-320, 1e30, -1e30, 1e300, 10**20, 1e6 + 1)
TEXTS = ("", "a", "0", "1", "\x00", "\x1b[31m", "a\n", "\u00e9", "..", "a/b", "sha256:" + 64 * "a", "c.safetensors")
OTHERS = ([], {}, [1], ["1"], [[]], [0.5, 0.5], {"a": 1}, [999.0, 1.0], [1, 2, 3, 4])
VALUES = (*NUMBERS, *TEXTS, *OTHERS)
BYTES = (b"", b"\x00", b"\xff", b'"', b"{", b"[", b"9", b"e999", b"NaN", b"\\ud800", b",")


LONGEST = 2.0  # seconds of the processor for one file


def verdict(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what a reader gives, or the sentence with which it refuses; anything else is an error of the test."""
    start = time.process_time()
    try:
        return read(), None
    except (ValueError, OSError) as error:
        sentence = str(error)
        assert sentence.isprintable(), sentence
        assert len(sentence) < 1200, sentence
        return None, sentence
    finally:
        assert time.process_time() - start < LONGEST


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's content without its digest, for which every change would be refused."""
    return {name: value for name, value in content.items() if name != "digest"}


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
        if not (inner := [path for path in places(changed) if path]):
            break  # nothing is left
        path = source.choice(inner)
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


def tensors_damaged(whole: bytes, source: random.Random) -> bytes:
    """Return a safetensors file with bytes changed, or with its header's content, or that of a text in it."""
    size = int.from_bytes(whole[:8], "little")
    act = source.random()
    if act < 0.3:
        return damaged(whole, source)
    if act < 0.4:
        return whole[: 8 + size] + damaged(whole[8 + size :], source)
    header = json.loads(whole[8 : 8 + size])
    texts = header.get("__metadata__", {})
    if texts and act < 0.8:
        name = source.choice(sorted(texts))
        texts[name] = json.dumps(mutated(json.loads(texts[name]), source, VALUES))
    else:
        values = (*VALUES, "F16", "I64", "U8", "BOOL", "C64", [0, 4], [0, 8], [2, 2])
        header = mutated(header, source, values, ("new", *sorted(header)))
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + whole[8 + size :]
