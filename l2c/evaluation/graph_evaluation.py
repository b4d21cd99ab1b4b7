"""Several samplers on the same noise, against the uncached one: error, cost, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from l2c.calibration.cost import Cost
from l2c.evaluation.metrics import ImageError, Reader, frechet_distance, image_error
from l2c.graph.given import each, table, takes
from l2c.io.names import quoted
from l2c.io.numbers import AT_ONCE, LARGEST_SEED, whole_number
from l2c.report.samples import SampleRow
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.image_error import standard_error
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.speed.latency import Latency, alternate

COUNT = partial(whole_number, low=1, high=AT_ONCE)


@dataclass(frozen=True)
class Result:
    """Results of one method; means where there are several draws.

    Attributes:
        method: name of the method.
        num_evaluations: calls of the backbone.
        removed: share of the layers of all evaluations that are reused.
        evaluations_worth: MACs, in full evaluations.
        error: error against the uncached images from the same noise.
        latency: wall-clock of one batch, alternated with the others.
        accuracy: share of images that the classifier reads as their label; None without a classifier.
        frechet: Frechet distance of the classifier's features to those of real pictures; None without a classifier.
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
class GraphEvaluation:
    """Results of all methods, the uncached one first, and images of the others for a picture.

    Attributes:
        results: one per method.
        samples: images of all methods but the first.
        labels: of the noises; none for a backbone without.
        seconds_for: what was timed, in words.
        guidance: the guidance scale in use, in words.

    """

    results: tuple[Result, ...]
    samples: tuple[SampleRow, ...]
    labels: tuple[int, ...]
    seconds_for: str
    guidance: str


def methods_with_draws(name: str, value: Any) -> dict[str, list[Sampler]]:
    """Return samplers by the name of their method; refuse what is none."""
    methods = {
        str(method): list(each(f"the draws of {method}", draws)) for method, draws in table(name, value).items()
    }
    for method, draws in methods.items():
        if not draws or not all(isinstance(draw, Sampler) for draw in draws):
            got = quoted(draws[0]) if draws else "none"
            raise ValueError(
                f"{name} must be lists of samplers by the name of their method, got {got} for {quoted(method)}"
            )
    if not methods:
        raise ValueError(f"{name} is empty; give the uncached sampler first, {{'uncached': [sampler], ...}}")
    return methods


@takes(
    samplers=methods_with_draws,
    cost=Cost,
    num_images=partial(whole_number, low=2, high=AT_ONCE),
    seed=partial(whole_number, low=0, high=LARGEST_SEED),
    batch_size=COUNT,
    timing_batch=COUNT,
    timing_repetitions=COUNT,
)
def evaluate_samplers(
    samplers: Mapping[str, Sequence[Sampler]],
    *,
    cost: Cost,
    num_images: int,
    seed: int,
    batch_size: int = 250,
    classifier: Reader | None = None,
    timing_batch: int = 16,
    timing_repetitions: int = 5,
) -> GraphEvaluation:
    """Sample with every method from the same noise and compare with the first one, the uncached.

    Args:
        samplers: methods by name, each a sampler or several draws of one; the first is the uncached one.
        cost: MACs of the backbone that all of them share.
        num_images: number of images per method; labels go round.
        seed: seed of the noise.
        batch_size: images at a time.
        classifier: reads the testbed's pictures; None for other images.
        timing_batch: images in the batch that is timed.
        timing_repetitions: rounds of the timing.

    """
    reference_sampler = next(iter(samplers.values()))[0]
    backbone = reference_sampler.backbone
    noise = seeded_noise(backbone.input_shape, seed, num_images)
    labels = labels_in_turn(backbone.num_labels, num_images)
    total = num_images * sum(map(len, samplers.values()))
    images: dict[str, list[Tensor]] = {}
    with tqdm(total=total, desc="sampling", unit="image") as bar:
        for name, draws in samplers.items():
            bar.set_postfix_str(name)
            images[name] = [
                sample_in_batches(s, labels, noise, batch_size=batch_size, seed=seed, advance=bar) for s in draws
            ]
    timed_labels = None if labels is None else labels[:timing_batch]

    timed = {
        name: partial(draws[0].sample, timed_labels, noise=noise[:timing_batch], seed=seed)
        for name, draws in samplers.items()
    }
    latencies = alternate(timed, repetitions=timing_repetitions, progress=True)
    target = images[next(iter(samplers))][0]
    results = tuple(
        _result(name, draws, images[name], target, labels, cost, latencies[name], classifier)
        for name, draws in samplers.items()
    )
    shown = tuple(
        SampleRow.of(name, drawn[0], target).drawn_from(len(drawn)) for name, drawn in list(images.items())[1:]
    )
    return GraphEvaluation(
        results,
        shown,
        () if labels is None else tuple(labels.tolist()),
        f"batch of {len(noise[:timing_batch])}",
        next(iter(samplers.values()))[0].guidance.described,
    )


def _result(
    name: str,
    draws: Sequence[Sampler],
    images: Sequence[Tensor],
    target: Tensor,
    labels: Tensor | None,
    cost: Cost,
    latency: Latency,
    classifier: Reader | None,
) -> Result:
    errors = [image_error(drawn, target) for drawn in images]
    mse = [error.mse for error in errors]
    spread = errors[0].mse_standard_error
    if len(mse) > 1:  # draws differ far more than images do
        spread = standard_error(mse)
    mean = ImageError(
        statistics.mean(mse),
        spread,
        statistics.mean(error.mse_p99 for error in errors),
        statistics.mean(error.psnr for error in errors),
        errors[0].num_images,
    )
    accuracy = frechet = None
    if classifier is not None and labels is not None:
        accuracy = statistics.mean(classifier.accuracy(drawn, labels) for drawn in images)
        frechet = statistics.mean(frechet_distance(drawn, classifier) for drawn in images)
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
