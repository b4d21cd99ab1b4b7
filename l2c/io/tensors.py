"""Tensors on their way in and out: refused where not finite, written whole as safetensors, read with clear errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from l2c.io.atomic import replacing
from l2c.io.names import quoted, shown

DEEPEST = 64  # levels
MOST = 200_000  # mappings and lists in all, each counted as often as it occurs
Members = Callable[[Any], Iterable[tuple[Any, Any]] | None]

# What numpy raises for a damaged array; it reads an array's head as Python's words.
BAD_ARRAY = (ValueError, EOFError, OSError, TokenError, SyntaxError, TypeError, OverflowError)


def usable_device(name: torch.device | str, what: str = "device") -> torch.device:
    """Return a device, `cpu`, `cuda` or `cuda:1`, on which tensors can be made here.

    Args:
        name: the device, or its name.
        what: what the setting is called, for the message.

    Raises:
        ValueError: if there is no such device.

    """
    try:
        if not isinstance(name, (str, torch.device)):
            raise TypeError
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"there is no {what} {quoted(name) if isinstance(name, str) else shown(name)} here; say {what}=cpu, or "
            "leave it out"
        ) from error


def is_plain(tensor: Tensor) -> bool:
    """Return whether values lie in memory one by one: not of a sparse, nested, quantised tensor or one on `meta`."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinities, or are not plain, see `is_plain`."""
    return [
        name
        for name, tensor in tensors.items()
        if not is_plain(tensor)
        or ((tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()))
    ]


def check_finite(what: str, tensor: Tensor, *, mend: str) -> None:
    """Refuse a tensor that holds NaN or infinities.

    Args:
        what: the plural name of its values, such as `images`.
        tensor: any shape.
        mend: what to change, an imperative clause.

    Raises:
        ValueError: if it is not finite; the message counts the samples of the first dimension that are not.

    """
    if not not_finite({what: tensor}):
        return
    count = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).sum()) if tensor.ndim > 1 else 1
    of = f"{count} of {len(tensor)} {what}" if tensor.ndim > 1 else what
    raise ValueError(f"{of} are not finite (NaN or infinite); nothing is written; {mend}")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: path of the file.
        tensors: tensors of any shape and device by name.
        texts: texts by name, kept in the file's head.

    Raises:
        ValueError: if a tensor holds NaN or infinities.
        OSError: if the file cannot be written, or the disk is full; the message names it.

    """
    if wrong := not_finite(tensors):
        raise ValueError(
            f"{wrong[0]} is not finite (NaN or infinite), so that {path} is not written; "
            "look for the first step that gave it"
        )
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, None if texts is None else dict(texts)
    )
    with replacing(path) as temporary:  # safetensors' own save_file would put another file in its place
        temporary.write_bytes(content)


def digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names, shapes and values (as 32-bit floats) of plain tensors, `sha256:...`."""
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()}"


def holds_tensors(path: str | Path, names: Iterable[str]) -> bool:
    """Return whether a file is of safetensors, with tensors of these names."""
    try:
        with opened(path, what="tensors", again="") as file:
            return set(file.keys()) == set(names)
    except ValueError:
        return False


@contextmanager
def opened(path: str | Path, *, what: str, again: str) -> Iterator[Any]:
    """Open a safetensors file for reading, as `safetensors.safe_open` does.

    Args:
        path: path of the file.
        what: what it should hold, for the message.
        again: how the file is made anew, an imperative clause.

    Raises:
        ValueError: if the file is damaged, or lacks a tensor or a text that is read within.

    """
    try:
        if not Path(path).is_file():
            raise OSError("there is no plain file")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"cannot read {what} from {shown(path, 300)}: {shown(error, 200)}; {again}") from error


def plain_members(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the members of a mapping, list or tuple with their keys or places; None for all else."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else None


def walked(value: Any, members: Members = plain_members) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield what has no members in nested values, in their order, each with its path.

    Args:
        value: the outermost one.
        members: the members of a value with their keys; None where it is a leaf.

    Raises:
        ValueError: if the values are nested more than `DEEPEST` levels deep, or are more than `MOST`.

    """
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    opened = 0
    while waiting:
        path, value = waiting.pop()
        inner = members(value)
        if inner is None:
            yield path, value
            continue
        opened += 1
        if len(path) >= DEEPEST or opened > MOST:
            many = f"are more than {MOST} mappings and lists" if opened > MOST else f"lie {DEEPEST} levels deep"
            raise ValueError(f"members {many}, or in a circle; give fewer, and none that holds itself")
        waiting.extend(((*path, key), member) for key, member in reversed(list(inner)))


def check_nested(what: str, value: Any, members: Members = plain_members) -> None:
    """Refuse nested values that are too deep or too many to be looked into, see `walked`.

    Args:
        what: how the message names them.
        value: the outermost one.
        members: see `walked`.

    """
    try:
        for _ in walked(value, members):
            pass
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None


def leaves_of(value: Any, kinds: type | tuple[type, ...] = Tensor) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the members of some types in nested mappings, lists and tuples, each as (path, member); see `walked`."""
    return ((path, member) for path, member in walked(value) if isinstance(member, kinds))
