"""A graph of given cost in one run: the penalty's weight is found while the routers train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.calibration.cost import Cost
from l2c.policies.budget import FORMS, Budget, check_reach, evaluations_worth
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.routers import Routers


def share_to_remove(cost: Cost, budget: Budget, *, num_evaluations: int, num_routed: int) -> float:
    """Return the share of the routed layers' MACs to remove, in (0, 1), so that a graph costs a budget.

    Args:
        cost: MACs of the backbone.
        budget: budget of the whole trajectory, see `policies.budget`.
        num_evaluations: evaluations of the trajectory.
        num_routed: number of routed ones.

    Raises:
        ValueError: if the budget has none of the known forms, or is out of reach; the message names the range.

    """
    if budget is None:
        raise ValueError(f"router=budget needs router.budget: give {FORMS}")
    worth = evaluations_worth(budget, num_evaluations)
    removable = num_routed * cost.removable  # evaluations' worth
    least = num_evaluations - removable
    check_reach(worth, least, num_evaluations, f"with {num_routed} routed evaluations of {num_evaluations}")
    if not least < worth < num_evaluations:
        raise ValueError(
            f"router.budget={budget} leaves routers nothing to learn; choose one between {least:.2f} and "
            f"{num_evaluations} evaluations' worth of MACs"
        )
    return (num_evaluations - worth) / removable


def rank_rows(
    weights: Tensor, evaluations: tuple[int, ...], num_evaluations: int, macs: tuple[int, ...], remove: float
) -> tuple[tuple[bool, ...], ...]:
    """Return rows that reuse the layers of least weight until a share of the routed MACs is removed.

    A layer that would overshoot is passed over for the next smaller one, so that the share is met within half of
    the cheapest layer.

    Args:
        weights: (routed evaluations, 2L), soft rows.
        evaluations: the routed evaluations, in that order.
        num_evaluations: evaluations of the trajectory.
        macs: MACs of each layer, (2L,).
        remove: the share, in 0..1.

    """
    rows = [[True] * len(macs) for _ in range(num_evaluations)]
    left = remove * len(evaluations) * sum(macs) + min(macs) / 2
    for index in weights.flatten().argsort(stable=True).tolist():
        place, layer = divmod(index, len(macs))
        if macs[layer] <= left:
            rows[evaluations[place]][layer] = False
            left -= macs[layer]
    return tuple(map(tuple, rows))


class BudgetedLearningToCache(LearningToCache):
    """The objective of Learning-to-Cache whose lambda follows the cost: dual ascent on log(lambda).

    minimise the error subject to c = c*, c the soft rows' share of the routed MACs. With v = c - c* after each
    step, u <- u + ascent v / R and lambda = lambda_0 exp(u + damping v): the integral finds lambda, the
    proportional part (what the quadratic term of an augmented Lagrangian does) keeps it from overshooting, the
    logarithm makes both free of the error's scale. lambda_0 is set by the first step's error. The routers are
    finally ranked, so that the graph meets the budget however the run ends.

    Args:
        backbone: the frozen network.
        cost: its MACs.
        remove: share of the routed layers' MACs to remove, in (0, 1).
        ascent: step of lambda, per visit of all R routers.
        damping: proportional part.
        error: `mean` or `sum`, see `LearningToCache`.
        threshold: threshold of straight-through rows.
        straight_through: see `LearningToCache`.

    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        cost: Cost,
        layer_weights: Tensor,
        remove: float,
        ascent: float = 1.0,
        damping: float = 3.0,
        error: str = "mean",
        threshold: float = 0.5,
        straight_through: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            penalty=0.0,
            layer_weights=layer_weights,
            error=error,
            threshold=threshold,
            straight_through=straight_through,
        )
        self.cost = cost
        self.remove = remove
        self.ascent = ascent
        self.damping = damping
        self._scale = 0.0  # lambda_0
        self._dual = 0.0  # u

    def after_step(self, routers: Routers, error: float, step: int) -> None:
        """Move lambda towards the budget."""
        if not self._scale and error > 0:
            self._scale = error
        share = float((routers.weights() @ self.layer_weights.to(routers.weights())).mean())
        violation = share - (1 - self.remove)
        self._dual += self.ascent * violation / len(routers.evaluations)
        self.penalty = self._scale * math.exp(self._dual + self.damping * violation)

    def state(self) -> Mapping[str, Any]:
        """Return the dual variable and its scale."""
        return {"penalty": self.penalty, "scale": self._scale, "dual": self._dual}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with a stored dual variable."""
        if state:
            self.penalty, self._scale, self._dual = state["penalty"], state["scale"], state["dual"]

    def rows(self, routers: Routers, num_evaluations: int) -> tuple[tuple[bool, ...], ...]:
        """Return rows that meet the budget within half of the cheapest layer."""
        return rank_rows(routers.weights(), routers.evaluations, num_evaluations, self.cost.layers, self.remove)
