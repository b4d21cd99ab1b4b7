"""Several samplers on the same noise, against the uncached one: error, cost, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.calibration.cost import Cost
from l2c.evaluation.metrics import ImageError, frechet_distance, image_error
from l2c.io.finite import check_finite
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.speed.latency import Latency, alternate


@dataclass(frozen=True)
class Result:
    """What one method gave; of several draws the mean.

    Attributes:
        method: name of the method.
        num_evaluations: calls of the backbone.
        removed: share of the layers of all evaluations that are reused.
        evaluations_worth: MACs, in full evaluations.
        error: error against the uncached images from the same noise.
        latency: wall-clock of one batch, alternated with the others.
        accuracy: share of images that the classifier reads as their label; None without a classifier.
        frechet: Frechet distance of the classifier's features to those of real digits; None likewise.
        num_draws: number of samplers averaged over.

    """

    method: str
    num_evaluations: int
    removed: float
    evaluations_worth: float
    error: ImageError
    latency: Latency
    accuracy: float | None
    frechet: float | None
    num_draws: int

    def to_dict(self) -> dict[str, object]:
        """Return plain numbers for JSON, what is not finite as null."""
        content = asdict(self)
        for part in (content, content["error"], content["latency"]):
            for key, value in part.items():
                if isinstance(value, float) and not math.isfinite(value):
                    part[key] = None
        return content


@dataclass(frozen=True)
class Judge:
    """Who reads images, and the real ones that they are compared with.

    Attributes:
        classifier: gives features, and says how many images are read as their labels.
        real: (M, C, H, W) in [-1, 1].

    """

    classifier: Any
    real: Tensor


@dataclass(frozen=True)
class Comparison:
    """Results of all methods, the uncached one first, and the first images of each for a picture."""

    results: tuple[Result, ...]
    images: dict[str, Tensor]
    labels: tuple[int, ...]
    seconds_for: str


def sample_many(
    sampler: Sampler,
    labels: Tensor | None,
    noise: Tensor,
    *,
    batch_size: int,
    seed: int = 0,
    advance: tqdm | None = None,
) -> Tensor:
    """Return images (N, C, H, W) for labels (N,) and noise (N, C, H, W), batch by batch, on the CPU.

    `seed` draws what a stochastic solver adds; it belongs to the image, not to the batch.
    """
    images = []
    for start in range(0, len(noise), batch_size):
        part = slice(start, start + batch_size)
        chosen = None if labels is None else labels[part]
        batch = sampler.sample(chosen, noise=noise[part], seed=seed, first_image=start)
        check_finite("images", batch, mend="check weights, guidance scale and graph, or take precision=fp32")
        images.append(batch.cpu())
        if advance is not None:
            advance.update(len(batch))
    return torch.cat(images)


def compare(
    samplers: Mapping[str, Sequence[Sampler]],
    *,
    cost: Cost,
    num_images: int,
    seed: int,
    batch_size: int = 250,
    judge: Judge | None = None,
    timing_batch: int = 16,
    timing_repetitions: int = 5,
    num_shown: int = 10,
) -> Comparison:
    """Sample with every method from the same noise and compare with the first one, the uncached.

    Args:
        samplers: methods by name, each a sampler or several draws of one; the first is the uncached reference.
        cost: MACs of the backbone that all of them share.
        num_images: number of images per method; labels go round.
        seed: seed of the noise.
        batch_size: images at a time.
        judge: reads the images; None = nobody can.
        timing_batch: images in the batch that is timed.
        timing_repetitions: rounds of the timing.
        num_shown: images kept for a picture.

    """
    reference_sampler = next(iter(samplers.values()))[0]
    backbone = reference_sampler.backbone
    noise = seeded_noise(backbone.input_shape, seed, num_images)
    labels = torch.arange(num_images) % backbone.num_labels if backbone.num_labels else None
    total = num_images * sum(map(len, samplers.values()))
    images: dict[str, list[Tensor]] = {}
    with tqdm(total=total, desc="sampling", unit="image") as bar:
        for name, draws in samplers.items():
            bar.set_postfix_str(name)
            images[name] = [
                sample_many(s, labels, noise, batch_size=batch_size, seed=seed, advance=bar) for s in draws
            ]
    timed_labels = None if labels is None else labels[:timing_batch]

    timed = {
        name: partial(draws[0].sample, timed_labels, noise=noise[:timing_batch], seed=seed)
        for name, draws in samplers.items()
    }
    latencies = alternate(timed, repetitions=timing_repetitions, progress=True)
    reference = images[next(iter(samplers))][0]
    results = tuple(
        _result(name, draws, images[name], reference, labels, cost, latencies[name], judge)
        for name, draws in samplers.items()
    )
    shown = {name: drawn[0][:num_shown] for name, drawn in images.items()}
    shown_labels = () if labels is None else tuple(labels[:num_shown].tolist())
    return Comparison(results, shown, shown_labels, f"batch of {len(noise[:timing_batch])}")


def _result(
    name: str,
    draws: Sequence[Sampler],
    images: Sequence[Tensor],
    reference: Tensor,
    labels: Tensor | None,
    cost: Cost,
    latency: Latency,
    judge: Judge | None,
) -> Result:
    errors = [image_error(drawn, reference) for drawn in images]
    mse = [error.mse for error in errors]
    spread = errors[0].mse_standard_error
    if len(mse) > 1:  # draws differ far more than images do
        spread = statistics.stdev(mse) / math.sqrt(len(mse))
    mean = ImageError(statistics.mean(mse), spread, statistics.mean(e.psnr for e in errors), errors[0].num_images)
    accuracy = frechet = None
    if judge is not None and labels is not None:
        accuracy = statistics.mean(judge.classifier.accuracy(drawn, labels) for drawn in images)
        frechet = statistics.mean(frechet_distance(drawn, judge.real, judge.classifier) for drawn in images)
    graphs = [sampler.graph for sampler in draws]
    worth = [
        float(sampler.solver.num_evaluations) if graph is None else cost.evaluations_worth(graph)
        for sampler, graph in zip(draws, graphs, strict=True)
    ]
    return Result(
        method=name,
        num_evaluations=draws[0].solver.num_evaluations,
        removed=statistics.mean(0.0 if graph is None else graph.removed_fraction_overall for graph in graphs),
        evaluations_worth=statistics.mean(worth),
        error=mean,
        latency=latency,
        accuracy=accuracy,
        frechet=frechet,
        num_draws=len(draws),
    )
