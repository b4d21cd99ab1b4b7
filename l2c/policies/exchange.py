"""Rows exchanged between neighbouring evaluations while the true error falls: first order ranks few of them badly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import cycle
from operator import itemgetter

import numpy as np

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import MAX_OUTPUTS
from l2c.policies.context import PolicyContext
from l2c.policies.gram import refitted
from l2c.policies.methods.l2p import feature_weights
from l2c.policies.true_error import TrueError

Rows = tuple[tuple[bool, ...], ...]
Make = Callable[[Rows], "CacheGraph | None"]


def makers(context: PolicyContext, products: np.ndarray, worth: float) -> tuple[Make, Make]:
    """Return two ways to a graph of rows: weights fitted in image space, None beyond the responses; and in features.

    Where responses reach, entries are computed besides that a budget leaves room for.

    Args:
        context: a context with `responses` in its calibration.
        products: see `l2p.measure_products`.
        worth: the budget in evaluations' worth of MACs.

    """

    @cache  # in_features asks for the same rows
    def in_image_space(rows: Rows) -> CacheGraph | None:
        return refitted(context, context.graph(rows, "gram"), worth)

    def in_features(rows: Rows) -> CacheGraph | None:
        filled = in_image_space(rows)
        rows = rows if filled is None else filled.rows
        return context.graph(rows, "l2p", **feature_weights(products, rows, MAX_OUTPUTS))

    return in_image_space, in_features


def exchanged(graph: CacheGraph, makes: Iterable[Make], true_error: TrueError, tries: int) -> CacheGraph:
    """Return the graph of least true error found by exchanging neighbouring rows of a graph.

    Two rows change places where that lowers the error, until no pair does or the tries have ended. What stands in is
    made anew each time, in the way that is better for the rows at the beginning.

    Args:
        graph: gives the rows at the beginning.
        makes: ways to a graph of rows.
        true_error: measures a graph.
        tries: graphs that are measured at most, as many as there are ways or more.

    """
    begun = [(make, made) for make in makes if (made := make(graph.rows)) is not None]
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
