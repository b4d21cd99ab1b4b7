"""What a trajectory remembers of its layers: the last two computed outputs of each, and what stands in for them."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.backbones.layer_cache import LayerCache
from l2c.graph import LINEAR, CacheGraph


def extrapolate(last: Tensor, before: Tensor, t_last: float, t_before: float, t: float) -> Tensor:
    """Return the line through two outputs (N, T, D), computed at t_before > t_last, at t < t_last."""
    return torch.lerp(before, last, (t_before - t) / (t_before - t_last))


class LayerHistory:
    """The computed outputs that a graph reads later, newest first, each with its t.

    Args:
        graph: says what is read when; nothing else is held.

    """

    def __init__(self, graph: CacheGraph) -> None:
        self.graph = graph
        self._computed: list[list[tuple[float, Tensor]]] = [[] for _ in graph.layers]

    def cached(self, evaluation: int, t: float) -> LayerCache:
        """Return what stands in for each layer that this evaluation reuses, (N, T, D); None for computed ones."""
        row = self.graph.rows[evaluation]
        return tuple(None if fresh else self._value(evaluation, layer, t) for layer, fresh in enumerate(row))

    def _value(self, evaluation: int, layer: int, t: float) -> Tensor:
        assert self.graph.reuse is not None
        (t_last, value), *earlier = self._computed[layer]
        if self.graph.reuse[evaluation] == LINEAR and earlier:
            t_before, before = earlier[0]
            value = extrapolate(value, before, t_last, t_before, t)
        return value

    def keep(self, evaluation: int) -> tuple[bool, ...]:
        """Return which outputs of an evaluation are worth handing to `update`."""
        row, held = self.graph.rows[evaluation], self.graph.held[evaluation]
        return tuple(fresh and count > 0 for fresh, count in zip(row, held, strict=True))

    def update(self, evaluation: int, t: float, outputs: LayerCache) -> None:
        """Take the outputs that an evaluation computed, let go of what no later one reads."""
        for layer, (output, count) in enumerate(zip(outputs, self.graph.held[evaluation], strict=True)):
            newest = [] if output is None else [(t, output)]
            self._computed[layer] = [*newest, *self._computed[layer]][:count]

    @property
    def nbytes(self) -> int:
        """Memory held now, in bytes."""
        return sum(output.nbytes for outputs in self._computed for _, output in outputs)
