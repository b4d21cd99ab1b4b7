"""L2P (arXiv 2604.26365): forecasts from past outputs whose weights are least squares on the features themselves.

The rows are those of `interval`. For each reused entry, weights of its last outputs
that add up to 1 are fitted to the outputs along a few uncached trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import HOLD, WEIGHTED, Rows, Weights, computed_before, from_slopes
from l2c.policies.budget import Budget
from l2c.policies.context import PolicyContext, policy
from l2c.policies.methods.interval import interval
from l2c.policies.settings import ORDER
from l2c.sampling.batches import in_batches, labels_in_turn
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import Sampler, seeded_noise

RIDGE = 1e-6  # of the mean square of the differences between outputs


@policy
def l2p(
    context: PolicyContext,
    *,
    n: float = 2,
    budget: Budget | None = None,
    order: int = 3,
    first: int = 1,
    last: int = 0,
    phase: int = 0,
    num_trajectories: int = 16,
    batch_size: int = 8,
    seed: int = 7,
) -> CacheGraph:
    """Return the graph of `interval` with weights of past outputs fitted to the features.

    Args:
        context: a context with the sampler.
        n: the interval; see `interval`.
        budget: finds n instead, see `policies.budget`.
        order: past outputs that a forecast reads, 2, 3 or 4; fewer where fewer were computed.
        first: evaluations at the start that compute everything.
        last: evaluations at the end that compute everything.
        phase: evaluations by which the computed ones come earlier.
        num_trajectories: uncached trajectories that weights are fitted on.
        batch_size: trajectories at a time.
        seed: seed of the noises.

    Raises:
        ValueError: if an option is out of range, or the budget out of reach.

    """
    ORDER.check("order", order)
    assert context.sampler is not None
    rows = interval(context, n=n, budget=budget, first=first, last=last, phase=phase).rows
    settings: dict[str, Any] = {
        "n": n,
        "budget": budget,
        "order": order,
        "num_trajectories": num_trajectories,
        "seed": seed,
    }
    if context.stochastic:  # a forecast would go on along the noise
        return context.graph(rows, "l2p", reuse=(HOLD,) * len(rows), **settings)
    products = measure_products(context.sampler, num_trajectories, batch_size=batch_size, seed=seed)
    return context.graph(rows, "l2p", **feature_weights(products, rows, order), **settings)


def feature_weights(products: np.ndarray, rows: Rows, order: int) -> dict[str, Any]:
    """Return weights fitted to the features for all entries that rows reuse, as `reuse` and `weights` of a graph.

    Args:
        products: see `measure_products`.
        rows: one row per evaluation, one bool per layer, True = compute.
        order: past outputs that a forecast reads; fewer where fewer were computed.

    """
    weighted = tuple(
        tuple(fitted(products[i], e, of_layer[:order]) for i, of_layer in enumerate(past) if not rows[e][i])
        for e, past in enumerate(computed_before(rows))
    )
    return {"reuse": (WEIGHTED,) * len(rows), "weights": weighted}


def fitted(products: np.ndarray, evaluation: int, past: Sequence[int]) -> Weights:
    """Return the weights of the outputs of evaluations `past`, the last one first, that come nearest to an output.

    With a the last output and b_j those before it, `f - a = sum_j s_j (a - b_j)` is solved by least squares.

    Args:
        products: (E, E), inner products of a layer's outputs at all evaluations.
        evaluation: the one that reuses.
        past: those that computed.

    """
    a, *older = past
    if not older:
        return (1.0,)

    def product(i: int, j: int, k: int, m: int) -> float:
        """Return the inner product of the differences f_i - f_j and f_k - f_m."""
        return float(products[i, k] - products[i, m] - products[j, k] + products[j, m])

    gram = np.array([[product(a, b, a, c) for c in older] for b in older])
    aim = np.array([product(evaluation, a, a, b) for b in older])
    ridge = RIDGE * float(np.trace(gram)) / len(older) + 1e-30
    return from_slopes(np.linalg.solve(gram + ridge * np.eye(len(older)), aim).tolist())


def measure_products(sampler: Sampler, num_trajectories: int, *, batch_size: int, seed: int) -> np.ndarray:
    """Return inner products (L, E, E) of each layer's outputs at all evaluations, over uncached trajectories.

    They are measured once for the same sampler and numbers, and are not to be written to.
    """
    known = _KNOWN.setdefault(sampler, {})
    key = (num_trajectories, batch_size, seed)
    if key not in known:
        known[key] = _products(sampler, num_trajectories, batch_size, seed)
        known[key].flags.writeable = False
    return known[key]


@torch.no_grad()
def _products(sampler: Sampler, num_trajectories: int, batch_size: int, seed: int) -> np.ndarray:
    backbone, device = sampler.backbone, next(sampler.backbone.parameters()).device
    count = sampler.solver.num_evaluations
    total = torch.zeros(backbone.num_layers, count, count, dtype=torch.float64)
    labels = labels_in_turn(backbone.num_labels, num_trajectories)
    noise = seeded_noise(backbone.input_shape, seed, num_trajectories)
    for _, chosen, part in in_batches(labels, noise, batch_size):
        network = GuidedBackbone(backbone, None if chosen is None else chosen.to(device), sampler.guidance)
        outputs: list[list[Tensor]] = []

        def evaluate(x: Tensor, t: float, network: GuidedBackbone = network, outputs: list = outputs) -> Tensor:
            output, layers = network.full(x, t)
            outputs.append([layer.flatten() for layer in layers])
            return output

        sampler.solver.sample(evaluate, part.to(device))
        for layer in range(backbone.num_layers):
            of_layer = torch.stack([row[layer] for row in outputs]).double()  # (E, F)
            total[layer] += (of_layer @ of_layer.T).cpu()
    return total.numpy()


_KNOWN: WeakKeyDictionary[Sampler, dict[tuple[int, int, int], np.ndarray]] = WeakKeyDictionary()
