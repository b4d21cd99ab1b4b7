"""The graphs of fixed rules within a budget: the first candidates of `best`."""

from __future__ import annotations

from collections.abc import Iterator

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import layers_of
from l2c.graph.predictor import HOLD, LINEAR
from l2c.policies.context import PolicyContext
from l2c.policies.methods.interval import interval
from l2c.policies.methods.ranking import late_first

FORECASTS = (HOLD, LINEAR, "taylor2", "foca")
NEAR = 0.02  # evaluations' worth that a rule may take beyond the budget
LONGEST = 8  # the largest interval that is tried
INTERVALS = 2  # how many intervals are tried, from the shortest that reaches the budget on


def rule_graphs(context: PolicyContext, worth: float) -> list[CacheGraph]:
    """Return the graphs of `interval` and `late_first` within a budget, each once.

    Intervals are tried with every phase, of all layers and of attention alone, with each forecast; the evaluations at
    the end that the budget has room for compute everything.

    Args:
        context: backbone and sampler.
        worth: the budget in evaluations' worth of MACs.

    """
    found: dict[object, CacheGraph] = {}
    for graph in (*_intervals(context, worth), *_late_first(context, worth)):
        if graph.num_reused and context.cost.evaluations_worth(graph) <= worth + NEAR:
            found.setdefault((graph.rows, graph.entry_weights), graph)
    return list(found.values())


def _intervals(context: PolicyContext, worth: float) -> Iterator[CacheGraph]:
    for part in ("all", "attn"):
        if not layers_of(part, context.blank.layers):
            continue
        reached = 0
        for n in range(2, LONGEST + 1):
            lasts = [_most_at_the_end(context, worth, n, phase, part) for phase in range(n)]
            for phase, last in enumerate(lasts):
                if last is not None:
                    for reuse in FORECASTS:
                        yield interval(context, n=n, phase=phase, last=last, part=part, reuse=reuse)
            reached += any(last is not None for last in lasts)
            if reached == INTERVALS:
                break


def _most_at_the_end(context: PolicyContext, worth: float, n: int, phase: int, part: str) -> int | None:
    """Return how many evaluations at the end may compute everything; None if no number reaches the budget."""
    count, macs = context.blank.num_evaluations, context.cost
    of_part = sum(macs.layers[layer] for layer in layers_of(part, context.blank.layers))
    to_save = (count - worth - NEAR) * macs.evaluation
    for e in range(1, count):
        if to_save <= 0:
            return count - e
        if (e + phase) % n:
            to_save -= of_part
    return 0 if to_save <= 0 else None


def _late_first(context: PolicyContext, worth: float) -> Iterator[CacheGraph]:
    for reuse in FORECASTS:
        for routed in ("alternate", "all"):
            if worth >= context.least(context.routed(routed, worth)):
                yield late_first(context, budget=worth, routed=routed, reuse=reuse)
