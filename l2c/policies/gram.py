"""Trajectory allocation: reuse where the summed change of the final image is smallest per MAC saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.graph.predictor import FITTED
from l2c.graph.statistics import SLACK, UNKNOWN
from l2c.io.names import counted
from l2c.policies.allocation import Allocation, Array
from l2c.policies.budget import NEAR, Budget, check_reach
from l2c.policies.context import PolicyContext, policy
from l2c.policies.expected_error import expected_error, true_over_predicted, unknown_error
from l2c.policies.settings import GRAM_REUSES, ORDER

SHARE_OF_3 = 0.4  # of the MACs; below, long spans make weights of three outputs worse than those of two
DIRECTIONS_OF_3 = 256  # responses that weights of three outputs are fitted on at least


@policy
def gram(
    context: PolicyContext,
    *,
    budget: Budget,
    reuses: Sequence[str] = (FITTED,),
    order: int | None = None,
    max_span: int | None = None,
    routed: str = "all",
    exchanges: int = 0,
) -> CacheGraph:
    """Return the greedy graph of a budget from responses; any budget from one calibration.

    Args:
        context: a context with `responses` in its calibration.
        budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
        reuses: predictors to choose from, of `hold`, `linear` and `fitted`, per evaluation.
        order: past outputs that `fitted` reads, 2, 3 or 4; their weights are least squares on the responses. None = 3
            for whole outputs where that has less error: from `SHARE_OF_3` of the MACs on, with `DIRECTIONS_OF_3`
            directions that were measured at the graph's own times; else 2.
        max_span: evaluations in a row that a layer may be reused; None = a fifth of the trajectory, at least 4.
        routed: `all` but the first evaluation, or `alternate`.
        exchanges: rounds of reusing more than the budget asks and computing entries again.

    """
    worth = context.evaluations(budget)
    unknown = [reuse for reuse in reuses if reuse not in GRAM_REUSES]
    if unknown or not reuses:
        raise ValueError(f"reuses must be some of {', '.join(GRAM_REUSES)}, got {list(reuses)}")
    calibration, total = context.required_calibration(), context.blank.num_evaluations
    order = _order(context, worth) if order is None else order
    ORDER.check("order", order)
    ages = calibration.tensor("responses").shape[2]
    if order > max(ages, 2):
        raise ValueError(
            f"order={order} reads {order} past outputs, but the calibration measured outputs of at most "
            f"{counted(ages, 'evaluation')} before; take a smaller order, or calibrate with responses.max_age={order}"
        )
    max_span = max(4, round(total / 5)) if max_span is None else max_span
    allocation = Allocation(
        calibration.tensor("responses").numpy(),
        context.blank.timesteps,
        context.cost.layers,
        routed=context.routed(routed, worth),
        max_span=max_span,
        reuses=reuses,
        order=order,
    )
    to_save = context.cost.to_save(worth, total)
    allocation.grow(to_save)
    allocation.exchange(to_save, rounds=exchanges)
    made = {"order": order, "max_span": max_span, "routed": routed, "exchanges": exchanges}
    graph = _graph_of(context, allocation, budget=worth, reuses=list(reuses), **made)
    got = context.cost.evaluations_worth(graph)
    if got > worth + NEAR and allocation.exhausted:
        check_reach(worth, got, total, *_limits(allocation, calibration.carried_from, routed))
    return graph


def _order(context: PolicyContext, worth: float) -> int:
    """Return how many past outputs are read where nobody says; one more of the whole network takes little memory."""
    calibration = context.required_calibration()
    _, _, ages, directions = calibration.tensor("responses").shape
    many = directions >= DIRECTIONS_OF_3 and ages >= 3 and calibration.carried_from is None
    wide = worth >= SHARE_OF_3 * context.blank.num_evaluations - SLACK
    return 3 if context.blank.layers == (WHOLE_OUTPUT,) and many and wide else 2


def _limits(allocation: Allocation, carried_from: int | None, routed: str) -> tuple[str, str]:
    """Return what keeps an allocation from a budget, and what its reader can do beside taking a larger one."""
    total, span, ages = len(allocation.timesteps), allocation.max_span, allocation.max_age
    mend = "take more steps, or raise max_span of the policy or of l2c.Calibration.graph"
    reason = f"where a layer is reused for {counted(span, 'evaluation')} in a row at most (max_span)"
    if carried_from is not None or span >= ages:
        mend = (
            "take more steps, or measure older outputs: l2c.Calibration.measure(..., responses={'max_age': N}), "
            "responses.max_age=N of l2c calibrate"
        )
        reason = f"where the calibration measured outputs of at most {ages} evaluations before"
    if carried_from is not None:
        reason = f"where the calibration, of {carried_from} evaluations, measured no outputs as old as {total} need"
    return (reason, mend) if routed == "all" else (f"with routed {routed} {reason}", f"{mend}, or routed=all")


def refitted(context: PolicyContext, graph: CacheGraph, worth: float, *, order: int = 3) -> CacheGraph | None:
    """Return a graph's rows with fitted weights, more of them computed where the budget leaves room.

    Args:
        context: a context with `responses` in its calibration.
        graph: a graph of the same sampler, such as a fixed rule's.
        worth: the budget in evaluations' worth of MACs, not below the graph's own.
        order: see `gram`.

    Returns:
        the graph; None where a layer is reused for longer than the responses reach.

    """
    responses = context.required_calibration().tensor("responses").numpy()
    allocation = Allocation(
        responses,
        context.blank.timesteps,
        context.cost.layers,
        max_span=responses.shape[2],
        reuses=(FITTED,),
        order=order,
    )
    if not allocation.set(np.array(graph.rows), [FITTED] * graph.num_evaluations):
        return None
    allocation.shrink(context.cost.to_save(worth, graph.num_evaluations))
    return _graph_of(context, allocation, budget=worth, order=order, **{"from": dict(graph.provenance)})


def _graph_of(context: PolicyContext, allocation: Allocation, **made: Any) -> CacheGraph:
    """Return the graph of an allocation, see `with_expected`."""
    graph = context.graph(allocation.rows.tolist(), "gram", **allocation.stand_ins(), **made)
    return with_expected(context, graph, allocation.total)


def with_expected(
    context: PolicyContext, graph: CacheGraph, change: Array, others: Iterable[Mapping[str, float]] = ()
) -> CacheGraph:
    """Return a graph that says the error that is expected and where responses were carried from.

    Where the error says nothing, it is there for comparisons alone, with the reason; see `without_unknown`.

    Args:
        context: a context with `responses` in its calibration.
        graph: the graph, with its MACs.
        change: (M,), the sum of all responses.
        others: corrections of further layers that it reuses, which may only raise what is expected.

    """
    calibration = context.required_calibration()
    if calibration.carried_from is not None:
        graph = graph.replace(provenance={**graph.provenance, "carried_from": calibration.carried_from})
    share = context.cost.evaluations_worth(graph) / graph.num_evaluations
    beyond = max(1.0, true_over_predicted(others, graph.num_evaluations, share))
    expected = expected_error(change, calibration, share).items()
    why = unknown_error(calibration, len(change)) if graph.num_reused else None  # nothing reused: exactly 0
    said = {} if why is None else {UNKNOWN: why}
    return graph.replace(measured={**graph.measured, **{name: beyond * value for name, value in expected}, **said})
