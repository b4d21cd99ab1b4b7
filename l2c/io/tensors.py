"""Safetensors files: written whole, of finite numbers alone; read with one sentence for each kind of damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from l2c.io.atomic import replacing
from l2c.io.finite import not_finite
from l2c.io.names import shown


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
        raise ValueError(f"{wrong[0]} is not finite (NaN or infinite), so that {path} is not written")
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, None if texts is None else dict(texts)
    )
    with replacing(path) as temporary:  # safetensors' own save_file would put another file in its place
        temporary.write_bytes(content)


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
