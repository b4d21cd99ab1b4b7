"""Objectives of router training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.graph.given import takes
from l2c.io.names import quoted
from l2c.io.numbers import finite_number, truth_value
from l2c.io.settings import LARGEST
from l2c.training.routers.pairs import Pair
from l2c.training.routers.routers import Routers, straight_through


@dataclass(frozen=True)
class RouterLoss:
    """The parts of one step's objective, all 0-d but `per_sample`.

    Attributes:
        loss: error + penalty weight * penalty; differentiable in the router.
        error: mean over the batch of `per_sample`.
        penalty: cost of computing, before its weight.
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
        threshold: a layer is computed where its soft weight exceeds this.
        straight_through: let the student see the thresholded row, with the soft row's gradient; the penalty
            stays soft.

    """

    @takes(
        backbone=Backbone,
        penalty=partial(finite_number, low=0.0, high=LARGEST),
        layer_weights=Tensor,
        threshold=partial(finite_number, low=0.0, high=1.0),
        straight_through=truth_value,
    )
    def __init__(
        self,
        backbone: Backbone,
        *,
        penalty: float,
        layer_weights: Tensor,
        error: str = "mean",
        threshold: float = 0.5,
        straight_through: bool = False,
    ) -> None:
        if not isinstance(error, str) or error not in ("mean", "sum"):
            raise ValueError(f"router.error must be mean or sum, got {quoted(error)}")
        if layer_weights.shape != (backbone.num_layers,):
            shape = tuple(layer_weights.shape)
            raise ValueError(
                f"layer_weights must be one for each of {backbone.num_layers} layers, got a shape {shape}"
            )
        self.backbone = backbone
        self.penalty = penalty
        self.layer_weights = layer_weights
        self.error = error
        self.threshold = threshold
        self.straight_through = straight_through

    def __call__(self, pair: Pair, row: Tensor) -> RouterLoss:
        """Compare a student pass with soft weights `row` (2L,) against the pair's teacher."""
        keep = (False,) * self.backbone.num_layers
        student, _ = self.backbone.forward_cached(pair.x, pair.t, pair.y, self.seen(row), pair.cache, keep)
        per_sample = self.per_sample(student, pair.teacher)
        error = per_sample.mean()
        penalty = torch.dot(row, self.layer_weights.to(row))
        return RouterLoss(error + self.penalty * penalty, error, penalty, per_sample)

    def seen(self, row: Tensor) -> Tensor:
        """Return the row (2L,) that the student pass is given for a soft row."""
        return straight_through(row, self.threshold) if self.straight_through else row

    def per_sample(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the squared error (N,) of outputs (N, C, H, W), their mean or sum."""
        squared = (student.float() - teacher.float()).square().flatten(1)
        return squared.mean(dim=1) if self.error == "mean" else squared.sum(dim=1)

    def after_step(self, routers: Routers, error: float, step: int) -> None:
        """Adapt to the routers after an optimiser step and its mean error; the plain objective has nothing to."""

    def state(self) -> Mapping[str, Any]:
        """Return the state that a resumed run needs beside the routers."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state` returned."""

    def rows(self, routers: Routers, num_evaluations: int) -> tuple[tuple[bool, ...], ...]:
        """Return the final rows of a whole trajectory."""
        return routers.rows(num_evaluations, self.threshold)
