"""The one seam: the definition of a cached layer.

A layer is one residual branch of a transformer block (index `2 b` attention, `2 b + 1` MLP). Its output
before the gate is what is kept and reused. `mix` decides between computing and reusing; a `Pass` hands each
block its decisions and takes what a later evaluation will read. `LayerPlan` is the pass whose row and cache are
plain data; the sampler has one of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from l2c.io.names import quoted

Fresh: TypeAlias = "bool | Tensor"
LayerOutput: TypeAlias = "Tensor | None"
LayerCache: TypeAlias = "tuple[LayerOutput, ...]"
Row: TypeAlias = "Sequence[bool] | Tensor"
Pair: TypeAlias = "tuple[LayerOutput, LayerOutput]"
BlockCall: TypeAlias = "Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]]"


def mix(fresh: Fresh, compute: Callable[[], Tensor], cached: LayerOutput) -> Tensor:
    """Return a layer's output: computed, reused, or a differentiable blend of both.

    Learning-to-Cache (arXiv 2406.01733), eq. 4: `fresh * f(x) + (1 - fresh) * cached`.

    Args:
        fresh: True computes, False reuses (`compute` is never called), a 0-d tensor in [0, 1] blends.
        compute: gives the layer's output `f(x)`, (N, T, D), before the gate.
        cached: the same layer's output at an earlier evaluation, (N, T, D); not read where `fresh` is True.

    Raises:
        ValueError: if an argument is of another type, `fresh` has dimensions, or both outputs differ in shape.

    """
    if not callable(compute):
        raise ValueError(f"compute must be a function that returns the layer's output, got {quoted(compute)}")
    if fresh is True:
        return compute()
    if fresh is not False and not (isinstance(fresh, Tensor) and fresh.is_floating_point() and fresh.ndim == 0):
        raise ValueError(
            f"fresh must be True, False or a tensor of one weight without dimensions, got {quoted(fresh)}; "
            "give bool(bit), or row.unbind()[layer]"
        )
    if not isinstance(cached, Tensor):
        raise ValueError(f"cached must be the layer's earlier output, a tensor, got {quoted(cached)}")
    if fresh is False:
        return cached
    computed = compute()
    if computed.shape != cached.shape:
        raise ValueError(
            f"cached has the shape {tuple(cached.shape)}, but compute() gives {tuple(computed.shape)}; give the same "
            "layer's output of these images"
        )
    return fresh * computed + (1 - fresh) * cached


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


def call_block(block: nn.Module, *inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run a block eagerly; other runners compile it, or recompute it in the backward pass."""
    return block(*inputs)


class Pass(ABC):
    """One pass through a backbone: decides which layers compute, replaces the others, keeps outputs.

    Args:
        call: runs a block, `call(block, *inputs, fresh, cached)`.

    """

    def __init__(self, call: BlockCall = call_block) -> None:
        self._call = call

    @abstractmethod
    def run(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        """Run block `index` on its inputs, the tokens x (N, T, D) first; return x after it."""

    def _outputs(self, block: nn.Module, *inputs: Any) -> tuple[Any, tuple[Any, Any]]:
        """Run a block; return what it returns, its output and those of its layers.

        Raises:
            ValueError: if a hook on the block returns something else in its place.

        """
        returned = self._call(block, *inputs)
        if not (isinstance(returned, tuple) and len(returned) == 2) or isinstance(returned[1], (Tensor, type(None))):
            got = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
            raise ValueError(
                f"a {type(block).__name__} must return (tokens, outputs of its layers), got {got}; a forward hook on "
                "it must return such a pair, or None to leave it as it is"
            )
        return returned

    def whole(self, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the network's output for x (N, C, H, W): what `compute` gives, or what this pass reuses."""
        return compute()


class LayerPlan(Pass):
    """A pass whose decisions and cache are plain data.

    Args:
        layer_names: names of the 2L layers, for messages.
        row: 2L decisions: bools (True = compute), or a float tensor (2L,) of soft weights.
        cache: 2L outputs kept by an earlier evaluation, None where nothing is; None = an empty cache.
        keep: 2L bools, the outputs to hand on; None = all of them.
        call: runs a block; see `Pass`.

    Raises:
        ValueError: if a length differs from 2L, or a layer is to be reused with nothing cached for it.

    """

    def __init__(
        self,
        layer_names: Sequence[str],
        row: Row,
        cache: Sequence[LayerOutput] | None,
        keep: Sequence[bool] | None,
        call: BlockCall = call_block,
    ) -> None:
        super().__init__(call)
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
        self._kept: list[LayerOutput] = [None] * num_layers

    def block(self, index: int) -> tuple[tuple[Fresh, Fresh], Pair]:
        """Return `(fresh, cached)` of block `index`, each as (attention, MLP)."""
        a, m = 2 * index, 2 * index + 1
        return (self._fresh[a], self._fresh[m]), (self._cached[a], self._cached[m])

    def run(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        """Run block `index`, hold on to those of its two outputs that are to be kept; see `Pass.run`."""
        x, outputs = self._outputs(block, *inputs, *self.block(index))
        for layer, output in zip((2 * index, 2 * index + 1), outputs, strict=True):
            self._kept[layer] = output if self._keep[layer] else None
        return x

    @property
    def new_cache(self) -> LayerCache:
        """The 2L outputs that later evaluations may reuse, None where nothing was to be kept."""
        return tuple(self._kept)
