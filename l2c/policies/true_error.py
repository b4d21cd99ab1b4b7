"""True error of a graph on calibration noises, rare noises of large images included."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.calibration.joining import free_noises
from l2c.calibration.measurements import OF_TIMES, Measurements
from l2c.calibration.measuring import check_sampler
from l2c.calibration.target import Target, target_of
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output
from l2c.graph.statistics import JUDGED, SLACK, WORTH
from l2c.io.digests import digest_of_text
from l2c.io.seeds import Stream
from l2c.policies.ladder import preferred
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.binding import binding_of
from l2c.sampling.image_error import squared_errors
from l2c.sampling.inputs import NotFinite
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import cached_like, uncached_like

NUM_JUDGED = 16  # noises that kinds of layers are compared on
BATCH = 8  # of them at a time, where a calibration does not say
TIE = 1.25  # true errors on few noises that differ by less say nothing about which is smaller
log = logging.getLogger(__name__)


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
        found: errors found so far.

    """

    sampler: Sampler
    labels: Tensor | None
    noise: Tensor
    target: Tensor
    weights: Tensor
    batch_size: int = 64
    found: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        sampler: Sampler,
        num_trajectories: int,
        seed: int,
        *,
        pool: int = 512,
        batch_size: int = 64,
        first: int = 0,
    ) -> TrueError:
        """Return the estimate on seeded noises, drawn once for the same sampler and numbers.

        Args:
            sampler: the uncached sampler.
            num_trajectories: noises that true errors are measured on.
            seed: seed of the noises.
            pool: noises sampled without a cache to find those of the largest images; at most num_trajectories = none.
            batch_size: trajectories at a time.
            first: number of the first noise among those of the seed.

        """
        known = _KNOWN.setdefault(sampler, {})
        key = (num_trajectories, seed, pool, batch_size, first)
        if key not in known:
            known[key] = cls._draw(sampler, num_trajectories, seed, max(pool, num_trajectories), batch_size, first)
        return cls(sampler, **known[key], batch_size=batch_size)

    @staticmethod
    def _draw(sampler: Sampler, count: int, seed: int, pool: int, batch_size: int, first: int) -> dict[str, Any]:
        """Return what is kept beside a sampler; without the sampler, which would keep itself alive by it."""
        backbone = sampler.backbone
        noise = seeded_noise(backbone.input_shape, seed, pool, first=first)
        labels = labels_in_turn(backbone.num_labels, pool, first=first)
        with tqdm(total=pool, desc="images to compare with", unit="image") as bar:
            target = sample_in_batches(sampler, labels, noise, batch_size=batch_size, advance=bar)
        order = target.abs().flatten(1).amax(dim=1).argsort(descending=True)
        extreme = count // 4 if pool > count else 0
        rest = order[extreme:].sort().values[: count - extreme]
        chosen = torch.cat([order[:extreme], rest])
        each = (pool - extreme) / max(len(rest), 1)
        weights = torch.tensor([1.0] * extreme + [each] * len(rest), dtype=torch.float64) / pool
        labels = None if labels is None else labels[chosen]
        noise, target = noise[chosen], target[chosen]
        return {"labels": labels, "noise": noise, "target": target, "weights": weights, "found": {}}

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
        return replace(self, labels=labels, noise=noise, target=target, weights=torch.cat(weights), found={})

    def error(self, graph: CacheGraph) -> float:
        """Return the estimated mean squared error per pixel; infinity where an image is not finite."""
        how = graph.timesteps, graph.solver, sorted(graph.solver_options.items()), graph.correction
        key = repr((*how, graph.layers, graph.rows, graph.entry_weights))
        return self._once(key, lambda: cached_like(self.sampler, graph, any_weights=True))

    def error_without_cache(self, num_evaluations: int) -> float:
        """Return the same of a number of evaluations without a cache.

        Raises:
            ValueError: if the solver has no such number.

        """
        return self._once(
            f"{num_evaluations} uncached", lambda: uncached_like(self.sampler, num_evaluations=num_evaluations)
        )

    def _once(self, key: str, make: Callable[[], Sampler]) -> float:
        """Return the error of what a key stands for; images are drawn the first time."""
        key = digest_of_text(key)
        if key not in self.found:
            self.found[key] = self._error_of(make())
        return self.found[key]

    def _error_of(self, sampler: Sampler) -> float:
        try:
            images = sample_in_batches(sampler, self.labels, self.noise, batch_size=self.batch_size)
        except NotFinite:
            return math.inf
        error = float(squared_errors(images, self.target) @ self.weights)
        return error if math.isfinite(error) else math.inf


def check_finite(error: float) -> None:
    """Refuse the least true error of some graphs where it is infinity: with each of them an image is not finite."""
    if not math.isfinite(error):
        raise NotFinite(
            "every graph tried draws images of NaN or infinity; take a larger budget, or precision='fp32' for the "
            "sampler"
        )


@dataclass(frozen=True)
class Judge:
    """The graph of least true error on a few noises, of those that a calibration makes of several kinds of layers.

    Expected errors rank graphs badly where responses were carried to other times: the one expected to be best erred
    up to 19 x as much as the one taken here. Few noises tell graphs apart, because all have the same noises. A pool
    of noises helped no further.

    Attributes:
        true_error: on noises that the calibration was not measured on.
        target: what graphs are made for, the sampler's own times.

    """

    true_error: TrueError
    target: Target

    @classmethod
    def of(cls, measured: Measurements, sampler: Sampler, batch_size: int | None = None) -> Judge:
        """Return the judge for the graphs of an uncached sampler.

        Args:
            measured: the calibration.
            sampler: of the same model and guidance, at the times that graphs are to be made for.
            batch_size: noises at a time; None = as many as trajectories when it was measured.

        Raises:
            ValueError: if it is no uncached sampler of the model and guidance measured, or its solver adds noise.

        """
        check_sampler(sampler)
        backbone, solver = sampler.backbone, sampler.solver
        solver.check_deterministic("true errors compare images from the same noise")
        binding = binding_of(backbone, solver, weights_bound=True, guidance=sampler.guidance)
        measured.check(CacheGraph.blank(binding), any_times=True)
        measured_there = all(measured.head[what] == binding.head[what] for what in OF_TIMES)
        target = target_of(measured, solver=None if measured_there else solver)
        seed, first = free_noises(measured.settings)
        size = batch_size or measured.settings.get("batch_size", BATCH)
        return cls(TrueError.of(sampler, NUM_JUDGED, seed, pool=0, first=first, batch_size=size), target)

    def best(self, graphs: Sequence[CacheGraph]) -> CacheGraph:
        """Return the graph of the least true error; of those that tie (`TIE`), the one that `ladder.preferred` takes.

        It says its true error, and its provenance those of all that draw finite images. A warning says where fewer
        steps without a cache err less.

        Raises:
            ValueError: if none does.

        """
        errors = [self.true_error.error(graph) for graph in graphs]
        least = min(errors)
        check_finite(least)
        graph = preferred([one for one, found in zip(graphs, errors, strict=True) if found <= TIE * least])
        error = next(found for one, found in zip(graphs, errors, strict=True) if one is graph)
        kinds: dict[str, list[float]] = {}
        for one, found in zip(graphs, errors, strict=True):
            kinds.setdefault(_kind(one), []).extend([found] if found < math.inf else [])
        said: dict[str, Any] = {"noises": len(self.true_error.noise), "true_errors": kinds}
        count = int(float(graph.measured[WORTH]) + SLACK)
        fewer = self._without_cache(count)
        if fewer is not None and fewer < error:
            log.warning(
                "on %d noises %d evaluations without a cache err less than the graph, by %.3g in the place of %.3g; "
                "take these or a larger budget",
                said["noises"],
                count,
                fewer,
                error,
            )
        if fewer is not None and math.isfinite(fewer):
            said["fewer_steps"] = fewer
        measured = {**graph.measured, JUDGED: error}
        return graph.replace(provenance={**graph.provenance, "judged": said}, measured=measured)

    def _without_cache(self, count: int) -> float | None:
        """Return the true error of fewer evaluations without a cache; None where the solver has no such number."""
        try:
            return self.true_error.error_without_cache(count)
        except ValueError:
            return None


def _kind(graph: CacheGraph) -> str:
    """Return the kind of a graph's layers."""
    if graph.layers == (WHOLE_OUTPUT,):
        return WHOLE_OUTPUT
    return f"layers and {WHOLE_OUTPUT}" if ends_in_output(graph.layers) else "layers"


_KNOWN: WeakKeyDictionary[Sampler, dict[tuple[int, ...], dict[str, Any]]] = WeakKeyDictionary()
