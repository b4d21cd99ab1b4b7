"""Blocks as compiled code, one graph for each way in which a block can compute and reuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone
from l2c.backbones.whole_output import LayersAndOutput
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import ends_in_output
from l2c.io.memory import out_of_memory

KEPT_GRAPHS = 64  # four for each class, shape and precision


class CompiledBlocks:
    """Run blocks by `torch.compile`: `fresh` and what is cached make four graphs per class and shape, no more.

    The modules are left as they are: other samplers run the same blocks uncompiled. Inductor keeps its code on disk,
    so a later process starts warm.

    Args:
        backend: backend of `torch.compile`.

    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        self.failed = False
        self._functions: dict[type[nn.Module], Callable[..., Any]] = {}
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KEPT_GRAPHS)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_functions": {}}  # compiled anew in a copy, when used

    def __call__(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run a block on `(*inputs, fresh, cached)`; a compiler's error ends compiling, out of memory does not."""
        if self.failed:
            return block(*inputs)
        try:
            return self.compiled(block, *inputs)
        except Exception as error:  # compilers and the tools that they call fail in ways of their own
            if out_of_memory(error):  # which would happen uncompiled, too
                raise
            self.failed = True
            reason = short_reason(error)
            warnings.warn(
                f"the blocks run uncompiled from now on, because compiling one failed: {reason}", stacklevel=2
            )
            return block(*inputs)

    def compiled(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run a block compiled, or let the compiler's error through."""
        kind = type(block)
        if kind not in self._functions:
            self._functions[kind] = torch.compile(kind.forward, backend=self.backend, dynamic=False, fullgraph=True)
        return self._functions[kind](block, *inputs)

    def warm_up(
        self, backbone: Backbone, graph: CacheGraph | None, x: Tensor, y: Tensor | None, *, progress: bool = False
    ) -> None:
        """Compile what a graph needs, for the batch of x (N, C, H, W) and labels y (N,)."""
        backbone = backbone.network if isinstance(backbone, LayersAndOutput) else backbone
        rows = _covering_rows(graph, backbone.num_layers, backbone.layers_per_block) if graph is not None else []
        t = torch.full((len(x),), 500.0, device=x.device)
        condition = backbone.condition(t, y)
        everything = (True,) * backbone.num_layers
        bar = tqdm(total=1 + len(rows), desc="compiling", unit="pass", disable=not progress, leave=False)
        with torch.no_grad(), bar:
            plan = backbone.plan(everything, call=self.compiled)
            backbone.run(x, condition, plan)
            bar.update()
            for row in rows:
                backbone.run(x, condition, backbone.plan(row, plan.new_cache, call=self.compiled))
                bar.update()


def _covering_rows(graph: CacheGraph, num_layers: int, per_block: int) -> list[tuple[bool, ...]]:
    """Return few rows of the first layers in which every block does, between them, what it does in any."""
    seen: set[tuple[int, tuple[bool, ...]]] = set()
    chosen = []
    ran = [row[:num_layers] for row in graph.rows if not ends_in_output(graph.layers) or row[-1]]
    for row in ran:
        ways = {(first, row[first : first + per_block]) for first in range(0, num_layers, per_block)}
        if ways - seen:
            chosen.append(row)
            seen |= ways
    return chosen


def short_reason(error: Exception) -> str:
    """Return an exception's message as one short line."""
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + '...'}"
