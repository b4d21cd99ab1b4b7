"""What routers minimise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.training.pairs import Pair


@dataclass(frozen=True)
class RouterLoss:
    """The parts of one step's objective, all 0-d but `per_sample`.

    Attributes:
        loss: error + penalty weight * penalty; differentiable in the router.
        error: mean over the batch of `per_sample`.
        penalty: what computing costs, before its weight.
        per_sample: (N,), squared error of the student against the teacher.

    """

    loss: Tensor
    error: Tensor
    penalty: Tensor
    per_sample: Tensor


class LearningToCache:
    """The objective of Learning-to-Cache (arXiv 2406.01733, eq. 8): error + lambda * cost of computing.

    Args:
        backbone: the frozen network.
        penalty: lambda.
        layer_weights: (2L,), what computing each layer costs; ones for the plain sum of the publication, MACs over
            the sum of all for the share of the routed evaluation's MACs, in [0, 1].
        error: `mean` of the squared error over all output channels and pixels (DiT), or their `sum` (U-ViT).

    """

    def __init__(self, backbone: Backbone, *, penalty: float, layer_weights: Tensor, error: str = "mean") -> None:
        if error not in ("mean", "sum"):
            raise ValueError(f"router.error must be mean or sum, got {error!r}")
        if penalty < 0:
            raise ValueError(f"router.penalty must not be negative, got {penalty}")
        self.backbone = backbone
        self.penalty = penalty
        self.layer_weights = layer_weights
        self.error = error

    def __call__(self, pair: Pair, row: Tensor) -> RouterLoss:
        """Compare a student pass with soft weights `row` (2L,) against the pair's teacher."""
        keep = (False,) * self.backbone.num_layers
        student, _ = self.backbone.forward_cached(pair.x, pair.t, pair.y, row, pair.cache, keep)
        squared = (student.float() - pair.teacher.float()).square().flatten(1)
        per_sample = squared.mean(dim=1) if self.error == "mean" else squared.sum(dim=1)
        error = per_sample.mean()
        penalty = torch.dot(row, self.layer_weights.to(row))
        return RouterLoss(error + self.penalty * penalty, error, penalty, per_sample)
