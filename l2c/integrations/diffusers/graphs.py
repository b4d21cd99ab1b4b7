"""The parts of a graph of a whole trajectory that the denoisers of a pipeline need."""

from __future__ import annotations

from typing import Any

from l2c.backbones.digest import known_digest
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers.adapters import effective_weights
from l2c.integrations.diffusers.denoisers import denoisers_of, second_of


def graphs_of(graph: CacheGraph, pipe: Any) -> CacheGraph | CacheGraphs:
    """Return a graph of a whole trajectory as the pipeline needs it: for two denoisers, the part of each.

    The second one's first evaluation computes everything.
    """
    models = denoisers_of(pipe)
    if len(models) == 1:
        return graph
    boundary = second_of(pipe, graph.timesteps)
    assert boundary is not None
    first, second = models
    start = sum(t >= boundary[1] for t in graph.timesteps)
    parts: dict[str, CacheGraph] = {}
    for name, part in ((first, slice(0, start)), (second, slice(start, None))):
        chosen = range(graph.num_evaluations)[part]
        if not chosen:
            raise ValueError(f"{type(pipe).__name__} calls its {name} at none of {len(graph.rows)} steps; take more")
        model = models[name]
        digest = graph.fingerprint if name == first else known_digest(model, effective_weights(model))
        parts[name] = with_evaluations(graph, chosen, fingerprint=digest)
    return CacheGraphs(parts)
