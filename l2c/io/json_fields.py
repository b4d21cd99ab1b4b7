"""JSON from unknown sources: read with bounds; a field or a file that does not fit is refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2c.io.names import quoted, shown

MAX_BYTES = 32 * 2**20
MAX_HEADER = 2**24  # bytes, of a safetensors file
MAX_DIGITS = 300  # of an integer; more would be no float
CALIBRATION, WEIGHTS, TORCH = "l2c-calibration", "safetensors", "torch"
# What files hold, and what reads it, by their field `format`; the last two have none.
FORMS = {
    "l2c-cache-graph": ("a cache graph", "l2c.CacheGraph.load"),
    "l2c-cache-graphs": ("graphs of a pipeline with two denoisers", "l2c.CacheGraphs.load"),
    "l2c-cache-ladder": ("a ladder of cache graphs", "l2c.Ladder.load"),
    CALIBRATION: ("a calibration", "l2c.Calibration.load"),
    "l2c-scale-shift": ("the correction of a cache graph", "l2c.CacheGraph.load, which is given the graph beside it"),
    WEIGHTS: ("weights", "l2c.load_backbone(..., checkpoint=PATH)"),
    TORCH: (
        "a file that torch.save wrote",
        "l2c.load_backbone(..., checkpoint=PATH) if it holds weights, by l2c.import_l2c_router if it holds routers",
    ),
}


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a plain file of a bounded size.

    Args:
        path: path of the file; a link is followed.
        max_bytes: the largest size.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder, a pipe or a device, too large, or no text in UTF-8.

    """
    name = shown(path, 300)
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError(f"{name} is not a text file in UTF-8, but a folder, pipe or device; give a plain file")
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{name} has {size} bytes, allowed are {max_bytes}; give the file that l2c wrote")
        content = file.read(max_bytes + 1)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text file in UTF-8; give the JSON file itself") from error


def form_of(path: str | Path) -> str | None:
    """Return which of `FORMS` a file has, without reading its tensors; None where it is none of these."""
    try:
        if not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            begin = file.read(128)
            if begin.startswith(b"PK") and b"/data.pkl" in begin:
                return TORCH
            size = int.from_bytes(begin[:8], "little")
            tensors = begin[8:9] == b"{" and size <= MAX_HEADER
            file.seek(8)
            text = file.read(size) if tensors else read_text(path)
        content = json.loads(text)
        if tensors and "l2c" not in content.get("__metadata__", {}):
            return WEIGHTS
        form = (json.loads(content["__metadata__"]["l2c"]) if tensors else content)["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return form if isinstance(form, str) and form in FORMS else None


def check_form(path: str | Path, *wanted: str) -> None:
    """Refuse a file that is known to have another of `FORMS` than is wanted.

    Raises:
        ValueError: if it has; the message says what it is and what reads it.

    """
    found = form_of(path)
    if found is not None and found not in wanted:
        what, reader = FORMS[found]
        wished = " or ".join(FORMS[form][0] for form in wanted)
        raise ValueError(f"{shown(path, 300)} is {what}, not {wished}; it is read by {reader}")


@contextmanager
def as_form(path: str | Path, *wanted: str) -> Iterator[None]:
    """Where a file is refused in a `with` block since it is another one of `FORMS`, say so; see `check_form`."""
    try:
        yield
    except ValueError:
        check_form(path, *wanted)
        raise


def parse_file(path: str | Path) -> Any:
    """Return the content of a JSON file, see `parse`; errors name the file."""
    text = read_text(path)
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{shown(path, 300)}: {error}") from error


def parse(text: str) -> Any:
    """Return the content of JSON text: every number finite, every key of an object once.

    Raises:
        ValueError: if the text is no such JSON.

    """
    try:
        content = json.loads(
            text,
            parse_constant=refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_unique,
        )
        if "\\u" in text:  # an escape may stand for half of a surrogate pair, which no file can hold
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply; export the file again") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}); "
            "the file may be cut short: export or copy it again"
        ) from error
    except UnicodeEncodeError as error:
        raise ValueError("its text holds half of a surrogate pair; export the file again") from error
    return content


def refuse_constant(name: str) -> float:
    """Refuse NaN and infinities, which Python's JSON reader lets through; for `json.loads(parse_constant=...)`."""
    raise ValueError(f"{name} is not a number that JSON knows; export the file again")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text, 40)} is too large for a float; export the file again")
    return value


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {shown(text, 40)} is too large for a float; export the file again")
    return int(text)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} occurs twice in one object; keep one of them")
    return content


def known_fields(content: Mapping[str, Any], fields: Iterable[str], name: str = "") -> None:
    """Refuse a field that an object must not have.

    Raises:
        ValueError: if there is one; the message names it and the known ones.

    """
    unknown = sorted(set(content) - set(fields))
    if unknown:
        field = f"{name}.{unknown[0]}" if name else unknown[0]
        raise ValueError(f"the field {shown(field)} is unknown; the fields are {', '.join(sorted(fields))}")


def member(content: Mapping[str, Any], key: str, kind: Any, name: str | None = None) -> Any:
    """Return a required member of a JSON object, of the given type; an `int` may be written as 2.0.

    Raises:
        ValueError: if it is missing or of another type.

    """
    if key not in content:
        raise ValueError(f"the field {shown(name or key)} is missing; export the file again")
    value = content[key]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in _kinds(kind))
        raise ValueError(f"the field {shown(name or key)} must be {wanted}, got {type(value).__name__}")
    return value


def items(content: Mapping[str, Any], key: str, kind: Any, name: str) -> Sequence[Any]:
    """Return a required list whose items all have the given type.

    Raises:
        ValueError: if it is missing, no list, or an item has another type.

    """
    values = member(content, key, list, name)
    kinds = _kinds(kind)
    if not all(type(value) in kinds for value in values):  # names are made only where one may be refused
        return [member({key: value}, key, kind, f"{name}[{i}]") for i, value in enumerate(values)]
    return list(values)


def _kinds(kind: Any) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)
