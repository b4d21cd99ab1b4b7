"""Trajectory allocation: reuse where the summed change of the final image is smallest per MAC saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import FITTED, HOLD, LINEAR, MAX_OUTPUTS
from l2c.policies.allocation import Allocation
from l2c.policies.budget import Budget, check_reach
from l2c.policies.context import Problem

REUSES = (HOLD, LINEAR, FITTED)


def gram(
    problem: Problem,
    *,
    budget: Budget,
    reuses: Sequence[str] = (FITTED,),
    order: int = 2,
    max_span: int = 4,
    routed: str = "all",
    exchanges: int = 0,
) -> CacheGraph:
    """Return the greedy graph of a budget from responses; any budget from one calibration.

    Args:
        problem: with `responses` among its statistics.
        budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
        reuses: what may stand in for a layer, of `hold`, `linear` and `fitted`, per evaluation.
        order: past outputs that `fitted` reads, 2, 3 or 4; their weights are least squares on the responses.
        max_span: evaluations in a row that a layer may be reused.
        routed: `all` but the first evaluation, `alternate` or `auto`.
        exchanges: rounds of overshooting the budget and coming back.

    """
    worth = problem.evaluations(budget)
    unknown = [reuse for reuse in reuses if reuse not in REUSES]
    if unknown or not reuses:
        raise ValueError(f"reuses must be some of {', '.join(REUSES)}, got {list(reuses)}")
    if order not in range(2, MAX_OUTPUTS + 1):
        raise ValueError(f"order must be 2..{MAX_OUTPUTS}, the past outputs that a fitted entry reads, got {order}")
    allocation = Allocation(
        problem.statistics().tensor("responses").numpy(),
        problem.blank.timesteps,
        problem.cost.layers,
        routed=problem.routed(routed, worth),
        max_span=max_span,
        reuses=reuses,
        order=order,
    )
    to_save = (problem.blank.num_evaluations - worth) * problem.cost.evaluation
    allocation.grow(to_save)
    allocation.exchange(to_save, rounds=exchanges)
    graph = problem.graph(
        allocation.rows.tolist(),
        "gram",
        **allocation.stand_ins(),
        budget=worth,
        reuses=list(reuses),
        order=order,
        max_span=max_span,
        routed=routed,
        exchanges=exchanges,
    )
    got = problem.cost.evaluations_worth(graph)
    if got > worth + 0.1:
        reason = f"with max_span {max_span} and routed {routed} (raise max_span, or take routed=all)"
        check_reach(worth, got, problem.blank.num_evaluations, reason)
    return graph


def refitted(problem: Problem, graph: CacheGraph, worth: float, *, order: int = 3) -> CacheGraph | None:
    """Return a graph's rows with fitted weights, more of them computed where the budget leaves room.

    Args:
        problem: with `responses` among its statistics.
        graph: of the same sampler; a fixed rule's, for one.
        worth: the budget in evaluations' worth of MACs, not below the graph's own.
        order: see `gram`.

    Returns:
        the graph; None where a layer is reused for longer than the responses reach.

    """
    responses = problem.statistics().tensor("responses").numpy()
    allocation = Allocation(
        responses,
        problem.blank.timesteps,
        problem.cost.layers,
        max_span=responses.shape[2],
        reuses=(FITTED,),
        order=order,
    )
    if not allocation.set(np.array(graph.rows), [FITTED] * graph.num_evaluations):
        return None
    allocation.shrink((graph.num_evaluations - worth) * problem.cost.evaluation)
    made: dict[str, Any] = {"from": dict(graph.provenance), "budget": worth, "order": order}
    return problem.graph(allocation.rows.tolist(), "gram", **allocation.stand_ins(), **made)
