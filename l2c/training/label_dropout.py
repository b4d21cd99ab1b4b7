"""Labels dropped in training, so that a network learns to predict without them (classifier-free guidance)."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.io.seeds import Stream


def drop_labels(y: Tensor, null_label: int | None, probability: float, stream: Stream) -> Tensor:
    """Return labels (N,), each replaced by the null label with a probability in [0, 1].

    Args:
        y: (N,) labels.
        null_label: None for a backbone without one, which keeps its labels.
        probability: probability of each label; 0 draws nothing.
        stream: source of the draws.

    """
    if null_label is None or probability == 0:
        return y
    dropped = stream.uniform(*y.shape) < probability
    return torch.where(dropped.to(y.device), torch.full_like(y, null_label), y)
