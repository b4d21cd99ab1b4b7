"""The 1,797 real 8 x 8 digits of scikit-learn, in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_SHAPE = (1, 8, 8)
NUM_CLASSES = 10


def digits() -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, 8, 8) in [-1, 1] and labels (1797,) in 0..9."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float() / 8 - 1
    return images.unsqueeze(1), torch.from_numpy(bunch.target).long()
