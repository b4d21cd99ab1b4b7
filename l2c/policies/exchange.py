"""Rows exchanged between neighbouring evaluations while the true error falls: first order ranks few of them badly."""

from __future__ import annotations

from itertools import cycle
from operator import itemgetter

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import stand_ins
from l2c.policies.context import PolicyContext
from l2c.policies.gram import refitted
from l2c.policies.true_error import TrueError

Rows = tuple[tuple[bool, ...], ...]
FORECAST = "taylor2"  # what stands in instead of fitted weights


def exchanged(context: PolicyContext, graph: CacheGraph, true_error: TrueError, tries: int) -> CacheGraph:
    """Return the graph of least true error found by exchanging neighbouring rows of a graph; its MACs stay.

    Two rows change places where that lowers the error, until no pair does or the tries have ended. What stands in is
    fitted to the rows each time, or forecast by `taylor2` where that is better for the rows at the beginning.

    Args:
        context: a context with `responses` among its statistics.
        graph: gives the rows at the beginning.
        true_error: the judge.
        tries: graphs that are judged at most, 2 or more.

    """
    worth = context.cost.evaluations_worth(graph)

    def fitted(rows: Rows) -> CacheGraph | None:
        return refitted(context, context.graph(rows, "exchanged"), worth)

    def forecast(rows: Rows) -> CacheGraph | None:
        return context.graph(rows, "exchanged", **stand_ins(rows, FORECAST))

    begun = [(make, made) for make in (fitted, forecast) if (made := make(graph.rows)) is not None]
    error, make, chosen = min(((true_error.error(made), make, made) for make, made in begun), key=itemgetter(0))
    tried, failed = len(begun), 0
    for e in cycle(range(1, len(graph.rows) - 1)):
        if tried >= tries or failed == len(graph.rows) - 2:
            break
        failed += 1
        rows = (*chosen.rows[:e], chosen.rows[e + 1], chosen.rows[e], *chosen.rows[e + 2 :])
        trial = make(rows) if rows != chosen.rows else None
        if trial is None:  # nothing changes, or the responses do not reach
            continue
        tried += 1
        of_trial = true_error.error(trial)
        if of_trial < error:
            error, chosen, failed = of_trial, trial, 0
    return chosen
