"""Refine a graph by what it does: true errors on calibration noises decide, responses only propose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.graph import CacheGraph
from l2c.policies.allocation import Allocation
from l2c.policies.problem import Problem
from l2c.sampling.sampler import Sampler, seeded_noise


@dataclass(frozen=True)
class Judge:
    """True mean squared error of graphs against the uncached images of calibration noises.

    Attributes:
        sampler: the uncached sampler.
        labels: (N,), or None for a backbone without.
        noise: (N, C, H, W).
        reference: (N, C, H, W), the uncached images.

    """

    sampler: Sampler
    labels: Tensor | None
    noise: Tensor
    reference: Tensor

    @classmethod
    def of(cls, sampler: Sampler, num_trajectories: int, seed: int) -> Judge:
        """Return the judge on seeded noises."""
        backbone = sampler.backbone
        noise = seeded_noise(backbone.input_shape, seed, num_trajectories)
        labels = torch.arange(num_trajectories) % backbone.num_labels if backbone.num_labels else None
        return cls(sampler, labels, noise, sampler.sample(labels, noise=noise, seed=seed))

    def errors(self, graph: CacheGraph) -> Tensor:
        """Return the squared error per pixel of each image, (N,)."""
        sampler = Sampler(self.sampler.backbone, graph=graph, cfg_scale=self.sampler.guidance.scale, any_weights=True)
        images = sampler.sample(self.labels, noise=self.noise)
        return (images - self.reference).double().square().flatten(1).mean(1).cpu()

    def error(self, graph: CacheGraph) -> float:
        """Return the mean squared error per pixel."""
        return float(self.errors(graph).mean())


def neighbour(allocation: Allocation, to_save: float, rng: np.random.Generator) -> None:
    """Move an allocation to a neighbour of the same cost.

    It computes a few reused entries again and takes others in their place, the likely ones by their responses, or
    changes what stands in at one evaluation.
    """
    reused = np.argwhere(~allocation.rows)
    if rng.random() < 0.2 and len(allocation.reuses) > 1:
        e = int(rng.choice(np.unique(reused[:, 0])))
        reuse = list(allocation.reuse)
        reuse[e] = next(other for other in allocation.reuses if other != reuse[e])
        allocation.set(allocation.rows, reuse)
        return
    chosen = reused[rng.integers(len(reused), size=int(rng.integers(1, 5)))]
    entries = {(int(e), int(layer)) for e, layer in chosen}
    allocation.compute(entries)
    allocation.grow(to_save, avoid=entries)


def refine(
    problem: Problem,
    allocation: Allocation,
    judge: Judge,
    to_save: float,
    *,
    rounds: int,
    method: str,
    hyperparameters: Mapping[str, Any],
    patience: int = 24,
    seed: int = 0,
) -> CacheGraph:
    """Return the graph after a walk that takes each neighbour with a smaller true error."""

    def graph(rows: np.ndarray, reuse: Sequence[str]) -> CacheGraph:
        return problem.graph(rows.tolist(), method, reuse=reuse, **hyperparameters)

    rng = np.random.default_rng(seed)
    best = graph(allocation.rows, allocation.reuse)
    least, since = judge.error(best), 0
    with tqdm(total=rounds, desc="refining", unit="graph") as bar:
        for _ in range(rounds):
            rows, reuse = allocation.rows.copy(), list(allocation.reuse)
            neighbour(allocation, to_save, rng)
            candidate = graph(allocation.rows, allocation.reuse)
            error = judge.error(candidate)
            bar.update()
            since += 1
            if error < least:
                best, least, since = candidate, error, 0
                bar.set_postfix_str(f"error {least:.3g}")
            else:
                allocation.set(rows, reuse)
            if since >= patience:
                break
    return best
