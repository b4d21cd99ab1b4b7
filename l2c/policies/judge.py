"""What a graph does: true errors on calibration noises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.graph import CacheGraph
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
