"""`.npz` files of images as ADM's evaluator reads and distributes them: `arr_0` (N, H, W, C) of 8 bits.

Reading and writing hold one batch in memory, so 50,000 images need not fit.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from l2c.io.atomic import replacing
from l2c.io.bundled import at_home
from l2c.io.names import shown
from l2c.io.tensors import BAD_ARRAY

IMAGES, LABELS = "arr_0", "arr_1"


def write_archive(
    path: str | Path, batches: Iterable[Tensor], count: int, shape: tuple[int, int, int], labels: Tensor | None = None
) -> Path:
    """Write images as `arr_0` (count, H, W, C) and labels as `arr_1` (count,).

    Args:
        path: the `.npz` file; it appears whole or not at all.
        batches: images (N, C, H, W) of 8 bits, `count` in all.
        count: number of images.
        shape: (C, H, W) of an image.
        labels: (count,), where there are any.

    """
    channels, height, width = shape
    target = Path(path)
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
            npy.write_array_header_1_0(file, header)
            written = 0
            for batch in batches:
                written += len(batch)
                file.write(batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        assert written == count, "the manifest counts what the shards hold"
        if labels is not None:
            with archive.open(f"{LABELS}.npy", "w") as file:
                npy.write_array(file, labels.numpy(), allow_pickle=False)
    return target


class ArchiveImages:
    """The images of an `.npz` file, read a batch at a time.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or holds no `arr_0` of 8-bit images.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = at_home(path)
        with open_member(self.path, IMAGES) as file:
            shape, fortran, dtype = read_header(file)
        if dtype != np.uint8 or len(shape) != 4 or fortran or min(shape) < 1 or shape[3] not in (1, 3):
            raise ValueError(
                f"{self.path} holds {IMAGES} of shape {shape} and type {dtype}; images are (N, H, W, 3) or "
                "(N, H, W, 1) of type uint8, in C order"
            )
        self._count, height, width, channels = shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, (N, C, H, W) of 8 bits with N up to `size`."""
        channels, height, width = self.shape
        bytes_each = channels * height * width
        with open_member(self.path, IMAGES) as file:
            read_header(file)
            for start in range(0, self._count, size):
                count = min(size, self._count - start)
                data = file.read(count * bytes_each)
                if len(data) < count * bytes_each:
                    raise RefusedArchive(f"{self.path} is cut short at image {start}; fetch or write it again")
                pixels = np.frombuffer(data, np.uint8).reshape(count, height, width, channels)
                yield torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


@contextmanager
def open_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open one array of an `.npz` file for reading.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no `.npz` file, is damaged where it is read, or has no such array.

    """
    names = array_names(path)
    if name not in names:
        held = ", ".join(map(shown, names)) or "nothing"
        raise ValueError(f"{shown(path, 300)} holds {held}, but no array {name}; give a file of images")
    with _whole(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        yield file


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of an `.npz` file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no `.npz` file.

    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {shown(path, 300)}; give a folder of l2c sample-many or an .npz file of images"
        )
    with _whole(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order (True = Fortran's) and type of the array that follows in a file."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(file)


class RefusedArchive(ValueError):
    """An archive was refused; the message says why."""


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn errors of a damaged, encrypted or unsupported archive into one sentence with its path."""
    try:
        yield
    except RefusedArchive:
        raise
    except (*BAD_ARRAY, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise RefusedArchive(
            f"{shown(path, 300)} is no .npz file, or is damaged ({shown(error, 200)}); fetch or write it again"
        ) from error
