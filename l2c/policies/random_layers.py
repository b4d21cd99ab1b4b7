"""Random layers at a given cost: the baseline that every other way to a graph must beat."""

from __future__ import annotations

import torch

from l2c.evaluation.cost import Cost
from l2c.graph import CacheGraph


def random_layers(like: CacheGraph, cost: Cost, *, seed: int, evaluations_worth: float | None = None) -> CacheGraph:
    """Return a graph that reuses random layers of the routed evaluations of another graph.

    Layers are drawn without replacement until the MACs have come down to the target.

    Args:
        like: gives backbone, sampler and routed evaluations.
        cost: MACs of the backbone.
        seed: seed of the draw.
        evaluations_worth: target in evaluations' worth of MACs; None = those of `like`.

    Raises:
        ValueError: the target lies outside what the routed evaluations can reach.

    """
    assert like.routed is not None
    target = cost.evaluations_worth(like) if evaluations_worth is None else evaluations_worth
    least = like.num_evaluations - len(like.routed) * sum(cost.layers) / cost.evaluation
    if not least - 1e-6 <= target <= like.num_evaluations + 1e-6:  # rounding must not refuse the ends
        raise ValueError(
            f"{target:g} evaluations' worth of MACs is out of reach with {len(like.routed)} routed evaluations of "
            f"{like.num_evaluations}; the reachable range is {least:.2f}..{like.num_evaluations}"
        )
    entries = [(e, layer) for e in like.routed for layer in range(like.num_layers)]
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [[True] * like.num_layers for _ in range(like.num_evaluations)]
    to_save = (like.num_evaluations - target) * cost.evaluation
    for index in order:
        evaluation, layer = entries[index]
        if to_save < cost.layers[layer] / 2:  # stop where the next layer would overshoot by more than it gains
            break
        rows[evaluation][layer] = False
        to_save -= cost.layers[layer]
    return like.replace(
        rows=tuple(map(tuple, rows)),
        provenance={"method": "random", "hyperparameters": {"seed": seed, "evaluations_worth": target}},
        measured={},
    )
