"""Squared errors of images against others of the same noise, and the standard error of their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def squared_errors(images: Tensor, target: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the mean squared error per pixel of each image (N,), in `dtype`; both have the shape (N, C, H, W)."""
    return (images.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)


def standard_error(values: Sequence[float] | np.ndarray | Tensor) -> float:
    """Return the standard error of the mean of values (N,); NaN of one value."""
    return float(np.std(np.asarray(values), ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
