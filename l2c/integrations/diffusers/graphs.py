"""The cache graphs of a pipeline with two denoisers: one for each, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from l2c.backbones.digest import known_digest
from l2c.graph import collection
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import table
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers.adapters import effective_weights
from l2c.integrations.diffusers.denoisers import denoisers_of, second_of
from l2c.io.names import quoted

FORMAT = "l2c-cache-graphs"
MOST = 16  # denoisers of a pipeline


class CacheGraphs(Mapping[str, CacheGraph]):
    """A cache graph for each denoiser of a pipeline, by its name there (`transformer`, `transformer_2`).

    Each has rows for the evaluations that its denoiser makes, and no others.

    Args:
        graphs: the graphs by the denoiser's name.

    Raises:
        ValueError: if it is no mapping from names to cache graphs.

    """

    def __init__(self, graphs: Mapping[str, CacheGraph]) -> None:
        self._graphs = dict(table("graphs", graphs))
        if not self._graphs:
            raise ValueError(
                "graphs is empty; give a cache graph by the name of each denoiser, {'transformer': graph}"
            )
        for name, graph in self._graphs.items():
            if not isinstance(name, str) or not isinstance(graph, CacheGraph):
                raise ValueError(
                    f"graphs must be cache graphs by the name of a denoiser, got {quoted(graph)} for {quoted(name)}"
                )

    def __getitem__(self, name: str) -> CacheGraph:
        return self._graphs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._graphs)

    def __repr__(self) -> str:
        return f"CacheGraphs({self._graphs!r})"

    def __len__(self) -> int:
        return len(self._graphs)

    def summary(self) -> str:
        """Return the summaries of the graphs, for people."""
        return "\n".join(f"{name}: {graph.summary()}" for name, graph in self._graphs.items())

    def save(self, path: str | Path) -> None:
        """Write one JSON file with all graphs; it appears whole or not at all.

        Raises:
            ValueError: if a graph has a correction; save such a graph in a file of its own.
            OSError: if the folder cannot be made or written.

        """
        collection.write(path, FORMAT, self._graphs)

    @classmethod
    def load(cls, path: str | Path) -> CacheGraphs:
        """Read and validate a file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file does not hold the graphs of a pipeline, or one of them is damaged.

        """
        return cls(collection.read(path, FORMAT, "graphs of a pipeline", most=MOST))


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
