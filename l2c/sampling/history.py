"""What a trajectory remembers of its layers: the last two computed outputs of each, and what stands in for them."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.backbones.layer_cache import LayerCache
from l2c.graph import CacheGraph
from l2c.sampling.correction import Correction


class LayerHistory:
    """The computed outputs that a graph reads later, newest first.

    Args:
        graph: says what is read when; nothing else is held.

    """

    def __init__(self, graph: CacheGraph) -> None:
        self.graph = graph
        self.correction = Correction.of(graph)
        self._computed: list[list[Tensor]] = [[] for _ in graph.layers]

    def cached(self, evaluation: int) -> LayerCache:
        """Return what stands in for each layer that this evaluation reuses, (N, T, D); None for computed ones."""
        row = self.graph.rows[evaluation]
        return tuple(None if fresh else self._value(evaluation, layer) for layer, fresh in enumerate(row))

    def _value(self, evaluation: int, layer: int) -> Tensor:
        value, *earlier = self._computed[layer]
        slope = self.graph.slopes[evaluation][layer]
        if slope:
            value = torch.lerp(earlier[0], value, 1 + slope)
        return value if self.correction is None else self.correction.apply(evaluation, layer, value)

    def keep(self, evaluation: int) -> tuple[bool, ...]:
        """Return which outputs of an evaluation are worth handing to `update`."""
        row, held = self.graph.rows[evaluation], self.graph.held[evaluation]
        return tuple(fresh and count > 0 for fresh, count in zip(row, held, strict=True))

    def update(self, evaluation: int, outputs: LayerCache) -> None:
        """Take the outputs that an evaluation computed, let go of what no later one reads."""
        for layer, (output, count) in enumerate(zip(outputs, self.graph.held[evaluation], strict=True)):
            newest = [] if output is None else [output]
            self._computed[layer] = [*newest, *self._computed[layer]][:count]

    @property
    def nbytes(self) -> int:
        """Memory held now, in bytes."""
        return sum(output.nbytes for outputs in self._computed for output in outputs)
