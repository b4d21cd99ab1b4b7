"""Recompute regularly: all layers (FORA), attention (PAB), the inner ones (DeepCache, Faster Diffusion)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import blocks
from l2c.graph.predictor import HOLD
from l2c.policies.budget import Budget
from l2c.policies.context import PolicyContext, policy
from l2c.policies.rules import FixedRule

WHOLE = FixedRule()
EVERY = 2


def _thinned(
    context: PolicyContext,
    reused: set[int],
    method: str,
    n: float,
    *,
    rule: FixedRule = WHOLE,
    shift: int = 0,
    said: Mapping[str, Any] | None = None,
    **hyperparameters: Any,
) -> CacheGraph:
    """Reuse some layers at the evaluations between every n-th one; n may be fractional, then gaps alternate."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n:g}; 1 recomputes at every evaluation")
    count = context.blank.num_evaluations
    rows = []
    for e in range(count):
        begun = math.floor((e + shift) / n + 1e-9) != math.floor((e - 1 + shift) / n + 1e-9)
        key = begun or not rule.allows(e, count)
        rows.append([key or layer not in reused for layer in range(context.blank.num_layers)])
    if said:
        hyperparameters["rule"] = said
    return context.graph(rows, method, **rule.stand_ins(context, rows), n=round(n, 6), **hyperparameters)


def _at(
    context: PolicyContext, reused: set[int], method: str, n: float, budget: Budget | None, **options: Any
) -> CacheGraph:
    if budget is None:
        return _thinned(context, reused, method, n, **options)
    if n != EVERY:
        raise ValueError(f"policy {method} finds n by the budget, got n={n:g} and budget={budget}; give one of them")
    worth = context.evaluations(budget)
    highest = float(context.blank.num_evaluations)
    return context.meet(worth, lambda x: _thinned(context, reused, method, 1 + x, **options), highest - 1)


@policy
def interval(
    context: PolicyContext,
    *,
    n: float = EVERY,
    budget: Budget | None = None,
    reuse: str = HOLD,
    first: int = 1,
    last: int = 0,
    phase: int = 0,
    part: str = "all",
) -> CacheGraph:
    """Compute everything at every n-th evaluation, nothing in between (FORA, arXiv 2407.01425).

    With `reuse=taylor1` or `taylor2` it is TaylorSeer (arXiv 2503.06923), with `foca` FoCa (arXiv 2508.16211).

    Args:
        context: backbone and sampler.
        n: the interval; fractional, gaps alternate.
        budget: finds n instead, see `policies.budget`.
        reuse: predictor: `hold`, `linear` (in t), `taylor1`, `taylor2` or `foca` (by evaluations).
        first: evaluations at the start that compute everything.
        last: evaluations at the end that compute everything.
        phase: evaluations by which the computed ones come earlier; with n = 2 and phase 1 they are 0, 1, 3, 5, ...
        part: layers that are reused: `all`, `attn` or `mlp`.

    Raises:
        ValueError: if an option is out of range, or the budget out of reach.

    """
    rule = FixedRule(reuse, first, last, part)
    rule.check(context.blank.num_evaluations)
    said = {**rule.said(), **({"phase": phase} if phase else {})}
    reused = rule.layers(context.blank.layers)
    return _at(context, reused, "interval", n, budget, rule=rule, shift=phase, said=said)


@policy
def pab(
    context: PolicyContext,
    *,
    n: float = EVERY,
    budget: Budget | None = None,
    start: float = 800,
    end: float = 100,
) -> CacheGraph:
    """Hold attention between every n-th evaluation at middle times (Pyramid Attention Broadcast, arXiv 2408.12588).

    Args:
        context: backbone and sampler.
        n: the interval; fractional, gaps alternate.
        budget: finds n instead, see `policies.budget`.
        start: attention is reused below this timestep of 1000.
        end: attention is reused above this one.

    Raises:
        ValueError: if no evaluation lies between, the backbone has no attention, or the budget is out of reach.

    """
    t = context.blank.timesteps
    unit = 1000 if t[0] <= 1 else 1  # some pipelines count time from 1 to 0
    inside = [e for e, time in enumerate(t) if end < unit * time < start]
    if not inside:
        raise ValueError(
            f"no evaluation has a timestep between end={end:g} and start={start:g}; the {len(t)} timesteps go from "
            f"{unit * t[0]:g} to {unit * t[-1]:g}; choose policy.start and policy.end so that some lie between"
        )
    rule = FixedRule(first=max(1, inside[0]), last=len(t) - 1 - inside[-1], part="attn")
    said = {"start": start, "end": end}
    return _at(context, rule.layers(context.blank.layers), "pab", n, budget, rule=rule, said=said)


@policy
def deepcache(
    context: PolicyContext, *, outer: int = 1, n: float = EVERY, budget: Budget | None = None
) -> CacheGraph:
    """Between every n-th evaluation reuse all but the `outer` first and last blocks (DeepCache, arXiv 2312.00858)."""
    of_block = blocks(context.blank.layers)
    count = _enough(of_block, "deepcache", 3)
    if not 0 < 2 * outer < count:
        raise ValueError(f"outer must lie in 1..{(count - 1) // 2} for {count} blocks, got {outer}")
    inner = {layer for block in of_block[outer : count - outer] for layer in block}
    return _at(context, inner, "deepcache", n, budget, outer=outer)


@policy
def faster_diffusion(context: PolicyContext, *, n: float = EVERY, budget: Budget | None = None) -> CacheGraph:
    """Between every n-th evaluation reuse the first half of the blocks (Faster Diffusion, arXiv 2312.09608)."""
    of_block = blocks(context.blank.layers)
    half = {layer for block in of_block[: _enough(of_block, "faster_diffusion", 2) // 2] for layer in block}
    return _at(context, half, "faster_diffusion", n, budget)


def _enough(of_block: Sequence[Sequence[int]], policy: str, least: int) -> int:
    """Return the number of blocks; refuse fewer than a policy needs to reuse some and compute others."""
    if len(of_block) < least:
        raise ValueError(
            f"{policy} reuses some of at least {least} blocks, got layers of {len(of_block)}; take interval, which "
            "reuses all of them"
        )
    return len(of_block)
