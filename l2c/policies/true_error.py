"""True error of a graph on calibration noises, rare noises of large images included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.graph.cache_graph import CacheGraph
from l2c.io.seeds import Stream
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.image_error import squared_errors
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import cached_like


@dataclass(frozen=True)
class TrueError:
    """True mean squared error of graphs against the uncached images, estimated from two strata of noises.

    A few noises in a thousand lead to images far outside the data, on which caching errs a thousand times more than
    elsewhere, so that they make most of the mean. A quarter of the noises are therefore those of the largest images
    of a pool, the others its first ones, each weighted by how many of the pool it stands for.

    Attributes:
        sampler: the uncached sampler.
        labels: (N,), or None for a backbone without.
        noise: (N, C, H, W).
        target: (N, C, H, W), the uncached images.
        weights: (N,), sum 1.
        batch_size: trajectories at a time.

    """

    sampler: Sampler
    labels: Tensor | None
    noise: Tensor
    target: Tensor
    weights: Tensor
    batch_size: int = 64

    @classmethod
    def of(
        cls, sampler: Sampler, num_trajectories: int, seed: int, *, pool: int = 512, batch_size: int = 64
    ) -> TrueError:
        """Return the estimate on seeded noises; the same one for the same sampler and numbers.

        Args:
            sampler: the uncached sampler.
            num_trajectories: noises that true errors are measured on.
            seed: seed of the noises.
            pool: noises sampled without a cache to find those of the largest images; at most num_trajectories = none.
            batch_size: trajectories at a time.

        """
        known = _KNOWN.setdefault(sampler, {})
        key = (num_trajectories, seed, pool, batch_size)
        if key not in known:
            known[key] = cls._draw(sampler, num_trajectories, seed, max(pool, num_trajectories), batch_size)
        return known[key]

    @classmethod
    def _draw(cls, sampler: Sampler, count: int, seed: int, pool: int, batch_size: int) -> TrueError:
        backbone = sampler.backbone
        noise = seeded_noise(backbone.input_shape, seed, pool)
        labels = labels_in_turn(backbone.num_labels, pool)
        with tqdm(total=pool, desc="images to compare with", unit="image") as bar:
            target = sample_in_batches(sampler, labels, noise, batch_size=batch_size, advance=bar)
        order = target.abs().flatten(1).amax(dim=1).argsort(descending=True)
        extreme = count // 4 if pool > count else 0
        rest = order[extreme:].sort().values[: count - extreme]
        chosen = torch.cat([order[:extreme], rest])
        each = (pool - extreme) / max(len(rest), 1)
        weights = torch.tensor([1.0] * extreme + [each] * len(rest), dtype=torch.float64) / pool
        labels = None if labels is None else labels[chosen]
        return cls(sampler, labels, noise[chosen], target[chosen], weights, batch_size)

    def thinned(self, step: int) -> TrueError:
        """Return the estimate from one in `step` noises of either stratum, drawn: labels go round in their order."""
        kept, weights = [], []
        for weight in self.weights.unique():
            stratum = (self.weights == weight).nonzero().flatten()
            some = stratum[Stream("fewer noises of a true error", len(stratum)).permutation(len(stratum))]
            some = some[: -(-len(stratum) // step)].sort().values
            kept.append(some)
            weights.append(self.weights[some] * len(stratum) / len(some))
        chosen = torch.cat(kept)
        labels = None if self.labels is None else self.labels[chosen]
        noise, target = self.noise[chosen], self.target[chosen]
        return replace(self, labels=labels, noise=noise, target=target, weights=torch.cat(weights))

    def error(self, graph: CacheGraph) -> float:
        """Return the estimated mean squared error per pixel."""
        sampler = cached_like(self.sampler, graph, any_weights=True)
        images = sample_in_batches(sampler, self.labels, self.noise, batch_size=self.batch_size)
        errors = squared_errors(images, self.target)
        return float(errors @ self.weights)


_KNOWN: WeakKeyDictionary[Sampler, dict[tuple[int, int, int, int], TrueError]] = WeakKeyDictionary()
