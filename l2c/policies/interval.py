"""Recompute at regular intervals: all layers (FORA), or all but the inner ones (DeepCache, Faster Diffusion)."""

from __future__ import annotations

import math
from typing import Any

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import blocks
from l2c.policies.budget import Budget
from l2c.policies.context import Problem


def _thinned(problem: Problem, reused: set[int], method: str, n: float, **hyperparameters: Any) -> CacheGraph:
    """Reuse some layers at the evaluations between every n-th one; n may be fractional, then gaps alternate."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n:g}; 1 recomputes at every evaluation")
    rows = []
    for e in range(problem.blank.num_evaluations):
        key = e == 0 or math.floor(e / n + 1e-9) != math.floor((e - 1) / n + 1e-9)
        rows.append([key or layer not in reused for layer in range(problem.blank.num_layers)])
    return problem.graph(rows, method, n=round(n, 6), **hyperparameters)


def _at(
    problem: Problem, reused: set[int], method: str, n: float, budget: Budget | None, **hyperparameters: Any
) -> CacheGraph:
    if budget is None:
        return _thinned(problem, reused, method, n, **hyperparameters)
    worth = problem.evaluations(budget)
    highest = float(problem.blank.num_evaluations)
    return problem.meet(worth, lambda x: _thinned(problem, reused, method, 1 + x, **hyperparameters), highest - 1)


def interval(problem: Problem, *, n: float = 2, budget: Budget | None = None) -> CacheGraph:
    """Compute everything at every n-th evaluation, nothing in between (FORA, arXiv 2407.01425)."""
    return _at(problem, set(range(problem.blank.num_layers)), "interval", n, budget)


def deepcache(problem: Problem, *, outer: int = 1, n: float = 2, budget: Budget | None = None) -> CacheGraph:
    """Between every n-th evaluation reuse all but the `outer` first and last blocks (DeepCache, arXiv 2312.00858)."""
    of_block = blocks(problem.blank.layers)
    count = len(of_block)
    if not 0 < 2 * outer < count:
        raise ValueError(f"outer must lie in 1..{(count - 1) // 2} for {count} blocks, got {outer}")
    inner = {layer for block in of_block[outer : count - outer] for layer in block}
    return _at(problem, inner, "deepcache", n, budget, outer=outer)


def faster_diffusion(problem: Problem, *, n: float = 2, budget: Budget | None = None) -> CacheGraph:
    """Between every n-th evaluation reuse the first half of the blocks (Faster Diffusion, arXiv 2312.09608)."""
    of_block = blocks(problem.blank.layers)
    half = {layer for block in of_block[: len(of_block) // 2] for layer in block}
    return _at(problem, half, "faster_diffusion", n, budget)
