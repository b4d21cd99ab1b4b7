"""SmoothCache (arXiv 2411.10510): the longest reuse whose error stays within a threshold, by layer type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import kinds
from l2c.policies.budget import Budget
from l2c.policies.context import PolicyContext, policy


def longest_spans(errors: Tensor, alpha: float) -> list[bool]:
    """Return bits (E,): from each computed evaluation reuse for the longest k whose error is within alpha.

    Args:
        errors: (K, E), relative L1 error at each evaluation when its output is the one of k = 1..K before.
        alpha: the threshold.

    """
    max_span, num_evaluations = errors.shape
    bits = [True] * num_evaluations
    e = 0
    while e < num_evaluations:
        spans = [
            k for k in range(1, max_span + 1) if e + k < num_evaluations and float(errors[k - 1, e + k]) <= alpha
        ]
        span = max(spans, default=0)
        bits[e + 1 : e + 1 + span] = [False] * span
        e += span + 1
    return bits


@policy
def smoothcache(
    context: PolicyContext,
    *,
    alpha: float = 0.18,
    budget: Budget | None = None,
    max_span: int = 3,
    by: str = "type",
) -> CacheGraph:
    """Schedule each layer type (attention, MLP), or each layer, by its error threshold."""
    if by not in ("type", "layer"):
        raise ValueError(f"by must be type or layer, got {by!r}")
    change = context.required_calibration().tensor("layer_change")  # (K, E, L)
    if not 1 <= max_span <= len(change):
        raise ValueError(f"max_span must lie in 1..{len(change)}, which the calibration holds, got {max_span}")
    groups = _groups(context.blank.layers, by)

    def make(threshold: float) -> CacheGraph:
        columns: dict[int, list[bool]] = {}
        for group in groups:
            bits = longest_spans(change[:max_span, :, list(group)].mean(dim=2), threshold)
            columns.update(dict.fromkeys(group, bits))
        rows = zip(*(columns[layer] for layer in range(context.blank.num_layers)), strict=True)
        return context.graph(rows, "smoothcache", alpha=round(threshold, 9), max_span=max_span, by=by)

    if budget is None:
        return make(alpha)
    finite = torch.nan_to_num(change, nan=0.0)
    return context.meet(context.evaluations(budget), make, float(finite.max()) + 1)


def _groups(layers: Sequence[str], by: str) -> Sequence[Sequence[int]]:
    return [(layer,) for layer in range(len(layers))] if by == "layer" else kinds(layers)
