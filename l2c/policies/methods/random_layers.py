"""Random layers at a given cost: the baseline that every other way to a graph must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from l2c.calibration.cost import Cost
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output
from l2c.graph.statistics import made_by
from l2c.io.seeds import Stream
from l2c.policies.budget import check_reach, rows_in_order


def random_layers(like: CacheGraph, cost: Cost, *, seed: int, evaluations_worth: float | None = None) -> CacheGraph:
    """Return a graph that holds random layers of the routed evaluations of another graph.

    Layers are drawn without replacement until the MACs have come down to the budget. They hold their last output;
    predictors, slopes and corrections of the other graph are not taken over. Where that reuses layers and the whole
    output, whole outputs are drawn.

    Args:
        like: gives backbone, sampler and routed evaluations.
        cost: MACs of the backbone.
        seed: seed of the draw.
        evaluations_worth: the budget in evaluations' worth of MACs; None = that of `like`.

    Raises:
        ValueError: if the budget lies outside what the routed evaluations can reach.

    """
    worth = cost.evaluations_worth(like) if evaluations_worth is None else evaluations_worth
    if ends_in_output(like.layers):
        outputs = tuple(row[-1:] for row in like.rows)
        like = CacheGraph.blank(replace(like.binding, layers=(WHOLE_OUTPUT,)), rows=outputs, routed=like.routed)
    assert like.routed is not None
    cost = cost.under(like)
    least = like.num_evaluations - len(like.routed) * cost.removable
    reason = f"with {len(like.routed)} routed evaluations of {like.num_evaluations}"
    check_reach(worth, least, like.num_evaluations, reason)
    entries = [(e, layer) for e in like.routed for layer in range(like.num_layers)]
    order = Stream("random layers of a graph", seed).permutation(len(entries)).tolist()
    to_save = cost.to_save(worth, like.num_evaluations)
    rows = rows_in_order([entries[i] for i in order], cost.layers, like.num_evaluations, to_save)
    return like.replace(
        rows=tuple(map(tuple, rows)),
        reuse=(),
        slopes=(),
        weights=(),
        correction=None,
        fingerprint=None,  # nothing of the weights was looked at
        provenance=made_by("random", {"seed": seed, "evaluations_worth": worth}),
        measured={},
    )


def counted_layers(blank: CacheGraph, routed: Sequence[int], counts: Sequence[int], *, seed: int) -> CacheGraph:
    """Return a graph in which each routed evaluation computes a given number of layers, drawn at random.

    Speed depends on how many layers a row computes, hardly on which.

    Args:
        blank: gives backbone and sampler.
        routed: the routed evaluations, noisiest first.
        counts: layers to compute in each of them.
        seed: seed of the draw.

    Raises:
        ValueError: if the counts are not one per routed evaluation, each within 0..2L.

    """
    if len(counts) != len(routed):
        raise ValueError(
            f"computed has {len(counts)} counts, but {len(routed)} evaluations are routed; give one each"
        )
    wrong = [count for count in counts if not 0 <= count <= blank.num_layers]
    if wrong:
        raise ValueError(f"computed has a count of {wrong[0]}; a row computes 0..{blank.num_layers} layers")
    rows = [[True] * blank.num_layers for _ in range(blank.num_evaluations)]
    for e, count in zip(routed, counts, strict=True):
        order = Stream("random layers of a row", seed, e).permutation(blank.num_layers)
        for layer in order[count:].tolist():
            rows[e][layer] = False
    return blank.replace(
        rows=tuple(map(tuple, rows)),
        routed=tuple(routed),
        provenance=made_by("random", {"seed": seed, "computed": list(counts)}),
    )
