"""The dynamic methods by name, what they measure of a model first, and the threshold that meets a budget.

- `first_block_cache`: the change of what the first block adds decides (ParaAttention, diffusers' FirstBlockCache).
- `dbcache`: the change of what the first blocks add decides; the last blocks may always compute too (cache-dit).
  `dbcache_taylor` extrapolates the line through the last two residuals instead of holding.
- `teacache`: a polynomial in the change of the first block's modulated input, fitted here (arXiv 2411.19108).
- `magcache`: ratios of the residuals' sizes, measured here (arXiv 2506.09045).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.evaluation.dynamic import (
    Accumulated,
    Change,
    Criterion,
    DynamicMethod,
    DynamicPass,
    DynamicSampler,
    Magnitude,
)
from l2c.io.names import chosen
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import Sampler, seeded_noise

OPTIONS: dict[str, dict[str, Any]] = {
    "first_block_cache": {},
    "dbcache": {"front": 2, "back": 0, "warmup": 2},
    "dbcache_taylor": {"front": 2, "back": 0, "warmup": 2},
    "teacache": {"degree": 4},
    "magcache": {"max_skips": 5, "retention": 0.2},
}
DYNAMIC = tuple(OPTIONS)
THRESHOLDS = (1e-4, 10.0)  # between which a budget's is looked for


def blocks_outside(name: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many blocks at the start and at the end a dynamic method always computes."""
    given = {**OPTIONS[name], **options}
    return given.get("front", int(name == "first_block_cache")), given.get("back", 0)


@dataclass(frozen=True)
class SignalsAlongTrajectory:
    """Signals and residuals of a model along its uncached trajectories.

    Attributes:
        input_changes: relative L1 change of the first block's modulated input at each evaluation but the first
            against the one before, of each image, (E - 1, N).
        output_changes: the same of the tokens after the last block.
        ratios: (E,), mean ratio of the size of what all blocks add to that of the evaluation before; the first is 1.

    """

    input_changes: Tensor
    output_changes: Tensor
    ratios: tuple[float, ...]


class _Everything(Criterion):
    """Compute everywhere, and record signals and residuals."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.seen: list[Tensor] = []

    def computes(self, evaluation: int, signal: Tensor) -> Tensor:
        return torch.ones(len(signal), dtype=torch.bool, device=signal.device)

    def computed(self, signal: Tensor, which: Tensor) -> None:
        self.seen.append(signal)


@torch.no_grad()
def measure(uncached: Sampler, labels: Tensor | None, noise: Tensor) -> SignalsAlongTrajectory:
    """Return signals and residuals along the uncached trajectories of labels (N,) and noise (N, C, H, W)."""
    backbone, network = uncached.backbone, GuidedBackbone(uncached.backbone, labels, uncached.guidance)
    branches = uncached.guidance.rows(len(noise)) // len(noise)
    layers = DynamicPass(DynamicMethod(_Everything, front=0), 0.0, backbone.num_layers // 2, branches)
    residuals: list[Tensor] = []
    tokens: list[Tensor] = []

    def evaluate(x: Tensor, t: float) -> Tensor:
        batch, times = network.inputs(x, t)
        output = backbone.run(batch, backbone.condition(times, network.y), layers)
        residual = layers.residual
        residuals.append(residual)
        tokens.append(torch.cat((layers.entry + residual).flatten(1).chunk(branches), dim=1))
        return network.merge(output, t)

    uncached.solver.sample(evaluate, noise)
    assert isinstance(layers.criterion, _Everything)
    sizes = [residual.norm(dim=-1) for residual in residuals]
    ratios = [1.0, *(float((now / before).mean()) for before, now in pairwise(sizes))]
    return SignalsAlongTrajectory(_changes(layers.criterion.seen), _changes(tokens), tuple(ratios))


def _changes(values: list[Tensor]) -> Tensor:
    """Return the relative L1 changes (E - 1, N) of E values (N, F)."""
    pairs = pairwise(values)
    return torch.stack([(now - before).abs().mean(1) / before.abs().mean(1) for before, now in pairs])


def dynamic_method(
    name: str, uncached: Sampler, labels: Tensor | None, noise: Tensor, **options: Any
) -> DynamicMethod:
    """Return a dynamic method, measured on a model where it has to be.

    Args:
        name: one of `DYNAMIC`.
        uncached: brings backbone, solver and guidance.
        labels: (N,), of the trajectories that are measured.
        noise: (N, C, H, W), their starts.
        options: options of the method, see `OPTIONS`.

    Raises:
        ValueError: if the method or an option is unknown.

    """
    chosen("dynamic method", name, OPTIONS)
    unknown = [option for option in options if option not in OPTIONS[name]]
    if unknown:
        allowed = ", ".join(OPTIONS[name]) or "none"
        raise ValueError(f"dynamic method {name} has no option {unknown[0]!r}; its options are {allowed}")
    given = {**OPTIONS[name], **options}
    if name == "first_block_cache":
        return DynamicMethod(Change)
    if name in ("dbcache", "dbcache_taylor"):
        criterion = partial(Change, warmup=given["warmup"])
        return DynamicMethod(criterion, given["front"], given["back"], forecast=name == "dbcache_taylor")
    measured = measure(uncached, labels, noise)
    if name == "magcache":
        return DynamicMethod(partial(Magnitude, ratios=measured.ratios, **given), front=0)
    inputs, outputs = measured.input_changes.flatten(), measured.output_changes.flatten()
    fit = np.polyfit(inputs.double().cpu().numpy(), outputs.double().cpu().numpy(), given["degree"])
    coefficients = tuple(fit.tolist())
    count = uncached.solver.num_evaluations
    return DynamicMethod(partial(Accumulated, coefficients=coefficients, num_evaluations=count), front=0)


def at_budget(
    name: str,
    uncached: Sampler,
    worth: float,
    *,
    num_trajectories: int = 32,
    seed: int = 7,
    steps: int = 10,
    **options: Any,
) -> DynamicSampler:
    """Return a dynamic method at the threshold whose mean MACs are nearest to a budget on noises of its own.

    Args:
        name: one of `DYNAMIC`.
        uncached: brings backbone, solver and guidance.
        worth: the budget in evaluations' worth of MACs.
        num_trajectories: noises that the method is measured and its threshold found on.
        seed: seed of the noises; evaluation takes others.
        steps: bisections of the threshold's logarithm.
        options: options of the method.

    """
    noise = seeded_noise(uncached.backbone.input_shape, seed, num_trajectories)
    labels = labels_in_turn(uncached.backbone.num_labels, num_trajectories)
    method = dynamic_method(name, uncached, labels, noise, **options)
    low, high = np.log(THRESHOLDS[0]), np.log(THRESHOLDS[1])
    best, missed = THRESHOLDS[0], float("inf")
    for _ in range(steps):
        middle = (low + high) / 2
        trial = DynamicSampler(uncached, method, float(np.exp(middle)))
        sample_in_batches(trial, labels, noise, batch_size=num_trajectories)
        over = trial.evaluations_worth - worth
        if abs(over) < missed:
            best, missed = trial.threshold, abs(over)
        low, high = (middle, high) if over > 0 else (low, middle)
    return DynamicSampler(uncached, method, best)
