"""Block Caching (Cache Me if You Can, Wimbauer et al., CVPR 2024): keep while the summed relative change is small."""

from __future__ import annotations

from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import blocks
from l2c.policies.budget import Budget
from l2c.policies.context import PolicyContext, policy

GRANULARITIES = ("layer", "block")


def accumulate_rows(change: Tensor, delta: float, max_span: int | None = None) -> list[list[bool]]:
    """Return bits (E, units): reuse while the sum of changes (E, units) since the last computing is within delta.

    Args:
        change: relative L1 change of each unit against the evaluation before; row 0 is not read.
        delta: the threshold.
        max_span: longest run of reuses; None = any.

    """
    rows = [[True] * change.shape[1] for _ in change]
    for unit in range(change.shape[1]):
        total, span = 0.0, 0
        for e in range(1, len(change)):
            total, span = total + float(change[e, unit]), span + 1
            if total > delta or (max_span is not None and span > max_span):
                total, span = 0.0, 0
            else:
                rows[e][unit] = False
    return rows


@policy
def block_caching(
    context: PolicyContext,
    *,
    delta: float = 0.5,
    budget: Budget | None = None,
    granularity: str = "layer",
    max_span: int | None = None,
) -> CacheGraph:
    """Reuse a block (or layer) while its summed relative L1 change stays within delta (published: 0.5)."""
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be layer or block, got {granularity!r}")
    layers = context.blank.layers
    units = blocks(layers) if granularity == "block" else [(layer,) for layer in range(len(layers))]
    unit_of = [next(u for u, unit in enumerate(units) if layer in unit) for layer in range(len(layers))]
    change = context.required_calibration().tensor(f"{granularity}_change")[0]  # (E, units)

    def make(threshold: float) -> CacheGraph:
        bits = accumulate_rows(change, threshold, max_span)
        rows = [[row[unit] for unit in unit_of] for row in bits]
        return context.graph(
            rows, "block_caching", delta=round(threshold, 9), granularity=granularity, max_span=max_span
        )

    if budget is None:
        return make(delta)
    return context.meet(context.evaluations(budget), make, float(change.sum()) + 1)
