"""Random numbers by name: what is drawn depends on a purpose and a few integers, not on what was drawn before.

torch's CPU generator looks at the low 32 bits of a seed alone, so seeds are mixed by numpy's SeedSequence, and noise
that must differ for every image is drawn by numpy.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def _sequence(purpose: str, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers])


def make_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator for a purpose and some non-negative integers (seed, step, ...)."""
    return torch.Generator().manual_seed(int(_sequence(purpose, numbers).generate_state(1)[0]))


def _normal_source(purpose: str, numbers: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(_sequence(purpose, numbers)))


def draw_normal(shape: tuple[int, ...], purpose: str, *numbers: int) -> Tensor:
    """Return standard normal noise of a shape, as 32-bit floats on the CPU."""
    return torch.from_numpy(_normal_source(purpose, numbers).standard_normal(shape, dtype=np.float32))


class ImageNoise:
    """Noise with a stream of its own for every image, so that no image depends on the others of its batch.

    Args:
        purpose: what the noise is for.
        seed: a non-negative integer.
        images: the numbers of a batch's images.

    """

    def __init__(self, purpose: str, seed: int, images: Iterable[int]) -> None:
        self._sources = [_normal_source(purpose, (seed, image)) for image in images]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next noise (N, ...) of the N images, as 32-bit floats on the CPU."""
        assert shape[0] == len(self._sources)
        drawn = [source.standard_normal(shape[1:], dtype=np.float32) for source in self._sources]
        return torch.from_numpy(np.stack(drawn))
