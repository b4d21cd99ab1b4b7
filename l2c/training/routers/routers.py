"""Routers: trainable logits, one vector of 2L per routed evaluation; sigmoid(logit) = fresh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l2c.diffusion.routed import routed_evaluations
from l2c.graph.checks import MAX_EVALUATIONS, MAX_LAYERS
from l2c.graph.given import each, takes
from l2c.io.numbers import LARGEST_SEED, finite_number, whole_number
from l2c.io.seeds import draw_normal
from l2c.io.settings import LARGEST

__all__ = ["Routers", "routed_evaluations"]
RANDOM_INIT = "normal"


def straight_through(row: Tensor, threshold: float) -> Tensor:
    """Return the row (2L,) thresholded to 0 and 1 in its values, with the gradient of the soft row."""
    hard = (row > threshold).to(row)
    return hard + (row - row.detach())  # this order keeps 0 and 1 exact


def places(name: str, values: Any) -> tuple[int, ...]:
    """Return the numbers of evaluations; refuse what is none."""
    return tuple(whole_number(f"one of {name}", one, low=1, high=MAX_EVALUATIONS) for one in each(name, values))


def start_of(name: str, value: Any) -> float | str:
    """Return the value that logits start at, or the word for random ones."""
    if isinstance(value, str) and value != RANDOM_INIT:
        raise ValueError(f"router.{name} must be a number or {RANDOM_INIT!r}, got {value!r}")
    return value if isinstance(value, str) else finite_number(name, value, low=-LARGEST, high=LARGEST)


class Routers(nn.Module):
    """The routers of one trajectory.

    Each routed evaluation has a parameter of its own: a shared one would let Adam move rows that a step did
    not visit.

    Args:
        evaluations: the routed evaluations.
        num_layers: 2L, the number of layers.
        init: the value that all logits start at, or `normal` for draws from N(0, 1).
        seed: seed of those draws.

    """

    @takes(
        evaluations=places,
        num_layers=partial(whole_number, low=1, high=MAX_LAYERS),
        init=start_of,
        seed=partial(whole_number, low=0, high=LARGEST_SEED),
    )
    def __init__(
        self, evaluations: Sequence[int], num_layers: int, *, init: float | str = 2.0, seed: int = 0
    ) -> None:
        super().__init__()
        if not evaluations:
            raise ValueError("there is no evaluation to route; use more evaluations (at least 3)")
        self.evaluations = tuple(evaluations)
        self.num_layers = num_layers
        self.logits = nn.ParameterDict()
        for e in self.evaluations:
            start = (
                draw_normal((num_layers,), "initial logits of a router", seed, e)
                if isinstance(init, str)
                else torch.full((num_layers,), float(init))
            )
            self.logits[str(e)] = nn.Parameter(start)

    def row(self, evaluation: int) -> Tensor:
        """Return the soft row of a routed evaluation: weights (2L,) in (0, 1), differentiable."""
        return torch.sigmoid(self.logits[str(evaluation)])

    @torch.no_grad()
    def clamp_(self, limit: float) -> None:
        """Clamp all logits to [-limit, limit]."""
        for logits in self.logits.values():
            logits.clamp_(-limit, limit)

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Return all soft rows, (routed evaluations, 2L)."""
        return torch.stack([self.row(e) for e in self.evaluations])

    def rows(self, num_evaluations: int, threshold: float) -> tuple[tuple[bool, ...], ...]:
        """Return the rows of a whole trajectory: compute where sigmoid(logit) > threshold."""
        rows = [(True,) * self.num_layers] * num_evaluations
        for e, weights in zip(self.evaluations, self.weights(), strict=True):
            rows[e] = tuple((weights > threshold).tolist())
        return tuple(rows)

    def removed_fraction(self, threshold: float) -> float:
        """Return the share of layers that a threshold removes from the routed evaluations."""
        return float((self.weights() <= threshold).float().mean())
