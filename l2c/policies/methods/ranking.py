"""Reuse entries in some order until the budget is met: by time, at random, by a score."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import HOLD
from l2c.io.bundled import at_home
from l2c.io.tensors import BAD_ARRAY
from l2c.policies.budget import Budget
from l2c.policies.context import PolicyContext, policy
from l2c.policies.methods.random_layers import random_layers
from l2c.policies.rules import FixedRule
from l2c.policies.settings import NEEDED_SCORES


@policy
def late_first(
    context: PolicyContext,
    *,
    budget: Budget,
    routed: str = "auto",
    reuse: str = HOLD,
    first: int = 1,
    last: int = 0,
    part: str = "all",
) -> CacheGraph:
    """Reuse the noisiest routed evaluations whole, the last one in part.

    Args:
        context: backbone and sampler.
        budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
        routed: evaluations that may reuse; see `PolicyContext.routed`.
        reuse: predictor: `hold`, `linear` (in t), `taylor1` or `taylor2` (by evaluations).
        first: evaluations at the start that compute everything.
        last: evaluations at the end that compute everything.
        part: layers that are reused: `all`, `attn` or `mlp`.

    Raises:
        ValueError: if an option is out of range, or the budget out of reach.

    """
    worth = context.evaluations(budget)
    rule, count = FixedRule(reuse, first, last, part), context.blank.num_evaluations
    rule.check(count)
    layers = sorted(rule.layers(context.blank.layers))
    evaluations = [e for e in context.routed(routed, worth) if rule.allows(e, count)]
    rows = context.in_order([(e, layer) for e in evaluations for layer in layers], worth)
    said: dict[str, Any] = {"rule": rule.said()} if rule.said() else {}
    return context.graph(rows, "late_first", **rule.stand_ins(context, rows), budget=worth, routed=routed, **said)


@policy
def random(context: PolicyContext, *, budget: Budget, seed: int = 0, routed: str = "auto") -> CacheGraph:
    """Reuse random layers of the routed evaluations."""
    worth = context.evaluations(budget)
    like = context.blank.replace(routed=context.routed(routed, worth))
    drawn = random_layers(like, context.cost, seed=seed, evaluations_worth=worth)
    return context.graph(drawn.rows, "random", budget=worth, seed=seed, routed=routed)


@policy
def top_k(context: PolicyContext, *, budget: Budget, score: str = "layer_change", routed: str = "auto") -> CacheGraph:
    """Reuse the entries with the smallest score.

    Args:
        context: a context, with a calibration for our own scores.
        budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
        score: `layer_change`: relative L1 change since the evaluation before; `response`: mean squared change of
            the final image when the output of the evaluation before is held, per MAC; or a path to an array (E, L)
            of any other score, as `numpy.save` writes it.
        routed: evaluations that may reuse; see `PolicyContext.routed`.

    Raises:
        ValueError: if the score is unknown, or the array has another shape.
        FileNotFoundError: if there is no such array.

    """
    worth = context.evaluations(budget)
    scores = _scores(context, score)  # (E, L)
    entries = [(e, layer) for e in context.routed(routed, worth) for layer in range(context.blank.num_layers)]
    entries.sort(key=lambda entry: float(scores[entry]))
    return context.graph(context.in_order(entries, worth), "top_k", budget=worth, score=score, routed=routed)


def _scores(context: PolicyContext, name: str) -> np.ndarray:
    """Return the scores (E, L) of a name or a file."""
    if name == "layer_change":
        return context.required_calibration().tensor(name)[0].numpy()
    if name == "response":
        responses = context.required_calibration().tensor("responses")[:, :, 0]  # (E, L, M) of age 1
        return responses.square().sum(dim=2).numpy() / np.asarray(context.cost.layers)
    if not name.endswith(".npy"):
        raise ValueError(f"unknown score {name!r}; known are {', '.join(NEEDED_SCORES)}, or a path to a .npy array")
    if not (path := at_home(name)).is_file():
        raise FileNotFoundError(f"no scores at {name}; numpy.save writes such an array")
    try:
        scores = np.load(path, mmap_mode="r", allow_pickle=False)  # the file must be as long as its head says
    except BAD_ARRAY as error:
        raise ValueError(f"{name} holds no array of numbers; write one with numpy.save") from error
    wanted = (context.blank.num_evaluations, context.blank.num_layers)
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds no array of numbers; write one with numpy.save")
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise ValueError(
            f"{name} holds an array {scores.shape}; a score is one finite number per (evaluation, layer), {wanted}"
        )
    return np.array(scores)
