"""Measured time beside the time that the MACs predict, for a graph and for other ways to run it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.calibration.cost import Cost
from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.execution.precision import in_precision, matmuls
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import uncached_of
from l2c.speed.latency import alternate_pieces, evaluations, quartiles, ratio_of
from l2c.speed.published_scheme import PublishedScheme

MODES = ("eager", "compiled", "captured", "compiled+captured")
PUBLISHED = "published"


@dataclass(frozen=True)
class Setting:
    """One way to run: batch size, precision, library of matrix products, and how the network is launched."""

    batch_size: int
    precision: str
    matmul: str
    mode: str


@dataclass(frozen=True)
class Speed:
    """Measurements of one setting; seconds are medians of one trajectory.

    Attributes:
        setting: the way to run.
        uncached: seconds without the graph.
        cached: seconds with it.
        speed_up: uncached over cached.
        spread: half the range between the quartiles of the speed-ups of single repetitions.
        efficiency: measured speed-up over the one that the MACs allow.
        images_per_second: images per second with the graph.
        by_evaluation: (uncached, cached) seconds of each evaluation; empty where whole runs were timed.
        cache_bytes: the most that the cache held.
        predicted_bytes: the same from the graph's lifetimes.
        every_output_bytes: memory to keep the outputs of all layers.
        device_bytes: the most memory allocated on a CUDA device with the graph; None elsewhere.
        error: root mean square difference of the cached images to those of the first setting, over their own.
        cached_times: seconds with the graph, of each repetition.
        fallback: why it does not run as it was asked to; None where it does.

    """

    setting: Setting
    uncached: float
    cached: float
    speed_up: float
    spread: float
    efficiency: float
    images_per_second: float
    by_evaluation: tuple[tuple[float, float], ...]
    cache_bytes: int
    predicted_bytes: int
    every_output_bytes: int
    device_bytes: int | None
    error: float
    cached_times: tuple[float, ...] = ()
    fallback: str | None = None

    def faster_than(self, other: Speed) -> tuple[float, float, float]:
        """Return median and quartiles of (cached time of another setting / that of this one) over the repetitions.

        Both must come from one `Bench.run`, which alternates them.
        """
        return ratio_of(other.cached_times, self.cached_times)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


class Bench:
    """A graph on a backbone, timed in several settings of one batch in one alternation.

    Args:
        backbone: in 32 bits, on its device.
        graph: the cache graph.
        cost: MACs of the backbone.
        cfg_scale: guidance.
        options: further arguments of the samplers (`cache_dtype`, ...).
        backend: compiler of the blocks, see `Sampler.compile`.

    """

    def __init__(
        self,
        backbone: Backbone,
        graph: CacheGraph,
        cost: Cost,
        *,
        cfg_scale: float | None,
        options: dict[str, Any] | None = None,
        backend: str = "inductor",
    ) -> None:
        self.backend = backend
        self.backbone = backbone
        self.graph = graph
        self.cost = cost
        self.cfg_scale = cfg_scale
        self.options = options or {}
        self._casts: dict[str, Backbone] = {}
        self._expected: dict[int, Tensor] = {}

    def run(self, settings: list[Setting], *, repetitions: int, by_evaluation: bool) -> list[Speed]:
        """Time settings of one batch size against each other, each with and without the graph."""
        pairs = [
            (self._variant(setting, None, by_evaluation), self._variant(setting, self.graph, by_evaluation))
            for setting in settings
        ]
        device_bytes = []
        for pair in pairs:
            for variant in pair:  # the first call of anything is slow
                _reset_device_memory(variant.noise.device)
                with heard(variant.said):
                    next(variant.start())
            device_bytes.append(_device_memory(pair[1].noise.device))
        runs = {f"{i} {j}": variant.start for i, pair in enumerate(pairs) for j, variant in enumerate(pair)}
        times = alternate_pieces(runs, repetitions=repetitions, progress=True)
        self._expected.setdefault(settings[0].batch_size, pairs[0][1].images)
        return [
            self._result(setting, pair[1], times[f"{i} 0"], times[f"{i} 1"], device)
            for i, (setting, pair, device) in enumerate(zip(settings, pairs, device_bytes, strict=True))
        ]

    def _result(
        self, setting: Setting, variant: _Variant, uncached: Tensor, cached: Tensor, device_bytes: int | None
    ) -> Speed:
        """Sum up seconds (repetitions, pieces)."""
        medians = [seconds.median(dim=0).values for seconds in (uncached, cached)]
        totals = [float(m.sum()) for m in medians]  # of each piece, so that one interruption does not tell
        ratios = (uncached.sum(1) / cached.sum(1)).tolist()
        low, _, high = quartiles(ratios)
        speed_up = totals[0] / totals[1]
        expected = self._expected[setting.batch_size]
        error = (variant.images - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        return Speed(
            setting=replace(setting, mode=variant.mode),
            uncached=totals[0],
            cached=totals[1],
            speed_up=speed_up,
            spread=(high - low) / 2,
            efficiency=speed_up / self.cost.speed_up(self.graph),
            images_per_second=setting.batch_size / totals[1],
            by_evaluation=tuple(zip(*(m.tolist() for m in medians), strict=True)) if variant.by_evaluation else (),
            cache_bytes=variant.cache_peak(),
            predicted_bytes=variant.predicted_bytes,
            every_output_bytes=variant.every_output_bytes,
            device_bytes=device_bytes,
            error=float(error),
            cached_times=tuple(cached.sum(1).tolist()),
            fallback=variant.said[0] if variant.said and variant.mode != setting.mode else None,
        )

    def _variant(self, setting: Setting, graph: CacheGraph | None, by_evaluation: bool) -> _Variant:
        backbone = self._cast(setting.precision)
        ways = {"precision": setting.precision, "matmul": setting.matmul, **self.options}
        if graph is None:
            sampler = uncached_of(self.graph, backbone, cfg_scale=self.cfg_scale, **ways)
        else:
            sampler = Sampler(backbone, graph=graph, cfg_scale=self.cfg_scale, any_weights=True, **ways)
        said: list[str] = []
        if setting.mode.startswith("compiled"):
            with heard(said):
                sampler.compile(setting.batch_size, backend=self.backend)
        if setting.mode.endswith("captured"):
            sampler.capture()
        return _Variant(sampler, setting, graph, by_evaluation and not sampler.captured, said)

    def _cast(self, precision: str) -> Backbone:
        """Return the backbone in a precision; one copy serves all samplers."""
        if precision not in self._casts:
            self._casts[precision] = in_precision(self.backbone, precision)
        return self._casts[precision]


class _Variant:
    """One sampler, or the published scheme on its backbone, as runs that can be timed."""

    def __init__(
        self, sampler: Sampler, setting: Setting, graph: CacheGraph | None, by_evaluation: bool, said: list[str]
    ) -> None:
        self.sampler = sampler
        self.said = said
        self.graph = graph
        self.by_evaluation = by_evaluation
        self.published = setting.mode == PUBLISHED
        backbone = sampler.backbone
        device = next(backbone.parameters()).device
        count = setting.batch_size
        self.noise = seeded_noise(backbone.input_shape, 0, count).to(device)
        labels = labels_in_turn(backbone.num_labels, count)
        self.y = None if labels is None else labels.to(device)
        self._peak = 0
        self.images = self.noise

    def start(self) -> Iterator[Tensor]:
        """Begin a trajectory that gives its state after each evaluation, or its images alone."""
        states = self._states()
        while True:
            with torch.no_grad(), matmuls(self.sampler.matmul):
                state = next(states, None)
            if state is None:
                break
            self.images = state
            if self.by_evaluation:
                yield state
        if not self.by_evaluation:
            yield self.images

    def _states(self) -> Iterator[Tensor]:
        if not self.by_evaluation and not self.published:  # as a user runs it
            yield self.sampler.sample(self.y, noise=self.noise)
            return
        model = self._model()
        for state in evaluations(self.sampler.solver, model, self.noise):
            self._peak = max(self._peak, model.cached_bytes)
            yield state

    def _model(self) -> Any:
        if self.published:
            return PublishedScheme(self.sampler.backbone, self.y, self.sampler.guidance, self.graph)
        return self.sampler.denoiser(self.y)

    @property
    def mode(self) -> str:
        """The mode actually used (differs from the requested one after a fallback)."""
        if self.published:
            return PUBLISHED
        ways = {"compiled": self.sampler.compiled, "captured": self.sampler.captured}
        return "+".join(way for way, ran in ways.items() if ran) or "eager"

    def cache_peak(self) -> int:
        """Return the peak cache size in bytes, as measured."""
        return self._peak if self.published else self.sampler.cache_peak_bytes

    @property
    def predicted_bytes(self) -> int:
        """Peak cache size in bytes, predicted from the lifetimes."""
        return self.every_output_bytes if self.published else self.sampler.cache_bytes(len(self.noise))

    @property
    def every_output_bytes(self) -> int:
        """Size in bytes of the outputs of all layers, as computed."""
        backbone = self.sampler.backbone
        numbers = backbone.kept_numbers
        assert numbers is not None
        rows = self.sampler.guidance.rows(len(self.noise))
        return backbone.num_layers * rows * numbers * backbone.dtype.itemsize


@contextmanager
def heard(sentences: list[str]) -> Iterator[None]:
    """Note the warnings of what is done inside, and give them on: a sampler says so where it cannot do as asked.

    Args:
        sentences: the first line of each warning is added here.

    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        sentences.append(str(warning.message).partition("\n")[0])
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _reset_device_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _device_memory(device: torch.device) -> int | None:
    """Return the most memory allocated on a CUDA device since the reset; None on another."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
