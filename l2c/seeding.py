"""Random numbers by name: what is drawn depends on a purpose and a few integers, not on what was drawn before.

torch's CPU generator looks at the low 32 bits of a seed alone, so seeds are mixed by numpy's SeedSequence, and noise
that must differ for every image is drawn by numpy.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def _sequence(purpose: str, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers])


def make_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator for a purpose and some non-negative integers (seed, step, ...)."""
    return torch.Generator().manual_seed(int(_sequence(purpose, numbers).generate_state(1)[0]))


def draw_normal(shape: tuple[int, ...], purpose: str, *numbers: int) -> Tensor:
    """Return standard normal noise of a shape, as 32-bit floats on the CPU."""
    generator = np.random.Generator(np.random.PCG64(_sequence(purpose, numbers)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
