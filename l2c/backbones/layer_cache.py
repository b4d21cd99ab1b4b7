"""The one seam: what a cached layer is.

A layer is one residual branch of a transformer block (index `2 b` attention, `2 b + 1` MLP). Its output
before the gate is what is kept and reused. `mix` decides between computing and reusing; `LayerPlan` hands
each block its part of a row and collects what a later evaluation will read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

Fresh: TypeAlias = "bool | Tensor"
LayerOutput: TypeAlias = "Tensor | None"
LayerCache: TypeAlias = "tuple[LayerOutput, ...]"
Row: TypeAlias = "Sequence[bool] | Tensor"


def mix(fresh: Fresh, compute: Callable[[], Tensor], cached: LayerOutput) -> Tensor:
    """Return a layer's output: computed, reused, or a differentiable blend of both.

    Learning-to-Cache (arXiv 2406.01733), eq. 4: `fresh * f(x) + (1 - fresh) * cached`.

    Args:
        fresh: True computes, False reuses (`compute` is never called), a 0-d tensor in [0, 1] blends.
        compute: gives the layer's output `f(x)`, (N, T, D), before the gate.
        cached: the same layer's output at an earlier evaluation, (N, T, D); not read where `fresh` is True.

    """
    if not isinstance(fresh, Tensor) and fresh:
        return compute()
    assert cached is not None, "LayerPlan refuses this with a message"
    return fresh * compute() + (1 - fresh) * cached if isinstance(fresh, Tensor) else cached


def _decisions(row: Row) -> tuple[Fresh, ...]:
    """Return one decision per layer: Python bools, or 0-d tensors of soft weights."""
    if isinstance(row, Tensor) and row.is_floating_point():
        return row.unbind()
    bits = row.tolist() if isinstance(row, Tensor) else list(row)
    if any(bit not in (0, 1) for bit in bits):
        raise ValueError(
            f"a row holds bools, or is a float tensor of soft weights, got {bits}; pass torch.tensor(row)"
        )
    return tuple(bool(bit) for bit in bits)  # numpy's True is not Python's


class LayerPlan:
    """One pass through a backbone: which layers compute, what they reuse, what is kept.

    Args:
        layer_names: names of the 2L layers, for messages.
        row: 2L decisions: bools (True = compute), or a float tensor (2L,) of soft weights.
        cache: 2L outputs kept by an earlier evaluation, None where nothing is; None = an empty cache.
        keep: 2L bools, the outputs to hand on; None = all of them.

    Raises:
        ValueError: a length differs from 2L, or a layer is to be reused with nothing cached for it.

    """

    def __init__(
        self,
        layer_names: Sequence[str],
        row: Row,
        cache: Sequence[LayerOutput] | None,
        keep: Sequence[bool] | None,
    ) -> None:
        num_layers = len(layer_names)
        self._fresh = _decisions(row)
        cached = (None,) * num_layers if cache is None else tuple(cache)
        self._keep = (True,) * num_layers if keep is None else tuple(map(bool, keep))
        for what, entries in (("row", self._fresh), ("cache", cached), ("keep", self._keep)):
            if len(entries) != num_layers:
                raise ValueError(
                    f"{what} has {len(entries)} entries, but this backbone has {num_layers} layers; "
                    "give one entry per layer (2 per block, attention first)"
                )
        # A computed layer is never shown the old output: a compiled block then sees 4 cases, not more.
        self._cached = tuple(None if fresh is True else c for fresh, c in zip(self._fresh, cached, strict=True))
        for name, fresh, output in zip(layer_names, self._fresh, self._cached, strict=True):
            if fresh is not True and output is None:
                raise ValueError(
                    f"layer {name} is to be reused, but nothing is cached for it; "
                    "compute it at an earlier evaluation and keep its output"
                )
        self._kept: list[LayerOutput] = []

    def block(self, index: int) -> tuple[tuple[Fresh, Fresh], tuple[LayerOutput, LayerOutput]]:
        """Return `(fresh, cached)` of block `index`, each as (attention, MLP)."""
        a, m = 2 * index, 2 * index + 1
        return (self._fresh[a], self._fresh[m]), (self._cached[a], self._cached[m])

    def layers(self) -> tuple[tuple[Fresh, ...], LayerCache, tuple[bool, ...]]:
        """Return `(fresh, cached, keep)` of all layers."""
        return self._fresh, self._cached, self._keep

    def collect(self, outputs: Sequence[LayerOutput]) -> None:
        """Take the outputs of the next layers, of a block or of all, and hold on only to those to be kept."""
        start = len(self._kept)
        keep = self._keep[start : start + len(outputs)]
        self._kept.extend(output if kept else None for output, kept in zip(outputs, keep, strict=True))

    @property
    def new_cache(self) -> LayerCache:
        """The 2L outputs that later evaluations may reuse, None where nothing was to be kept."""
        return tuple(self._kept)
