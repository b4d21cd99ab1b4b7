"""Random numbers by name: what is drawn depends on a purpose and a few integers, not on what was drawn before.

Every random number of this package comes from here, so that a resumed run draws what the unbroken one would have
drawn. numpy's SeedSequence mixes purpose and integers into 128 bits, so neighbouring seeds share nothing; torch's CPU
generator would use only the low 32 bits of a seed.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.io.names import quoted
from l2c.io.numbers import LARGEST_SEED, scalar


class Stream:
    """The random numbers of a purpose and some integers, as tensors on the CPU; each call goes on in the stream.

    A stream is also a source of noise for solvers, see `diffusion.solver.NoiseSource`.

    Args:
        purpose: purpose of the numbers, in words; other words give other numbers.
        numbers: the seed, then what else tells streams apart (step, image, ...), whole numbers in 0..2^32-1; always
            as many of them for one purpose.

    Raises:
        ValueError: if a number is not whole or out of range; the message names it.

    """

    def __init__(self, purpose: str, *numbers: int) -> None:
        whole = [number if type(number) is int else _whole(number) for number in numbers]
        for number in whole:
            if not 0 <= number <= LARGEST_SEED:
                raise _no_seed(number)
        mixed = np.random.SeedSequence([zlib.crc32(purpose.encode()), *whole])
        self._source = np.random.Generator(np.random.PCG64(mixed))

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers of a shape, as 32-bit floats."""
        return torch.from_numpy(self._source.standard_normal(shape, dtype=np.float32))

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) of a shape, as 32-bit floats."""
        return torch.from_numpy(np.asarray(self._source.random(shape, dtype=np.float32)))

    def integers(self, stop: int, *shape: int, start: int = 0) -> Tensor:
        """Return whole numbers in start..stop-1 of a shape, as 64-bit integers."""
        return torch.from_numpy(np.asarray(self._source.integers(start, stop, shape)))

    def permutation(self, count: int) -> Tensor:
        """Return 0..count-1 in random order (count,)."""
        return torch.from_numpy(self._source.permutation(count))


def _whole(number: Any) -> int:
    try:
        if isinstance(found := scalar(number), bool):
            raise TypeError
        return operator.index(found)
    except (TypeError, RuntimeError):
        raise _no_seed(number) from None


def _no_seed(number: object) -> ValueError:
    return ValueError(f"a seed must be a whole number in 0..{LARGEST_SEED}, got {quoted(number)}; choose e.g. seed=0")


def draw_normal(shape: tuple[int, ...], purpose: str, *numbers: int) -> Tensor:
    """Return standard normal noise of a shape, the first of its stream, as 32-bit floats on the CPU."""
    return Stream(purpose, *numbers)(shape)


def torch_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return torch's own generator, for what takes no other, with the seed that a stream begins with."""
    return torch.Generator().manual_seed(int(Stream(purpose, *numbers).integers(2**32)))


class ImageNoise:
    """Noise with a stream of its own for every image, so that no image depends on the others of its batch.

    Args:
        purpose: purpose of the noise, in words.
        seed: a whole number of at least 0.
        images: the numbers of a batch's images.

    """

    def __init__(self, purpose: str, seed: int, images: Iterable[int]) -> None:
        self._streams = [Stream(purpose, seed, image) for image in images]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next noise (N, ...) of the N images, as 32-bit floats on the CPU."""
        assert shape[0] == len(self._streams)
        return torch.stack([stream(shape[1:]) for stream in self._streams])
