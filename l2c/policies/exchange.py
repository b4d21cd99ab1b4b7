"""Rows are exchanged by true errors: first-order predictions rank rows badly when few evaluations compute."""

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
    """Return two functions that turn rows into a graph, with weights fitted in image space and in feature space.

    The first returns None for rows that read outputs beyond the measured ages. Where the ages suffice, both compute
    further entries as far as the budget allows.

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

    Two rows are exchanged if that lowers the error, until no exchange does or the tries are used up. Each graph is
    made by the function of `makes` that gives the smaller error for the rows at the beginning.

    Args:
        graph: gives the rows at the beginning.
        makes: functions that turn rows into a graph, see `makers`.
        true_error: measures a graph.
        tries: graphs that are measured at most; at least as many as `makes` has functions.

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
