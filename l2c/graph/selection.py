"""The graph of some of a graph's evaluations: for other times, or for one of two networks that share a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import ends_in_output
from l2c.graph.predictor import Weights, reused_layers
from l2c.graph.statistics import MACS


def with_evaluations(graph: CacheGraph, chosen: Sequence[int], **changes: Any) -> CacheGraph:
    """Return the graph of chosen evaluations in a row, the first of which computes everything.

    A `weighted` entry holds the last output if some of its outputs are not computed any more. What was measured of
    the given graph is not kept, but for the MACs of one evaluation.

    Args:
        graph: the graph to choose from.
        chosen: at least one index of an evaluation; one may be chosen several times.
        changes: further attributes, such as the timesteps.

    """
    others = chosen[1:]
    rows = ((True,) * graph.num_layers, *(graph.rows[e] for e in others))
    computed, whole = [0] * graph.num_layers, ends_in_output(graph.layers)
    weighted: list[tuple[Weights, ...]] = []
    for e, row in zip(chosen, rows, strict=True):
        given = iter(graph.weights[e])
        sets: list[Weights] = []
        computed = [count + fresh for count, fresh in zip(computed, row, strict=True)]
        for layer in reused_layers(row, whole=whole):
            weights = next(given, None)
            if weights is not None:
                sets.append(weights if len(weights) <= computed[layer] else (1.0,))
        weighted.append(tuple(sets))
    return graph.replace(
        **{
            "rows": rows,
            "timesteps": tuple(graph.timesteps[e] for e in chosen),
            "reuse": tuple(graph.reuse[e] for e in chosen),
            "slopes": ((), *(graph.slopes[e] for e in others)),
            "weights": tuple(weighted),
            "routed": None,
            "measured": {name: value for name, value in graph.measured.items() if name == MACS},
            **changes,
        }
    )
