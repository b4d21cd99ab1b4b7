"""A linear model of time and memory of a trajectory, to estimate runs without measuring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from l2c.backbones.dit import DiT
from l2c.calibration.cost import count_macs
from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.speed.latency import seconds_of


@dataclass(frozen=True)
class Size:
    """A DiT and a way to sample with it: half of the layers reused at every second evaluation."""

    batch_size: int
    tokens: int
    depth: int
    num_evaluations: int
    hidden_size: int = 384


@dataclass(frozen=True)
class TimedSize:
    """Time and memory of one size.

    Attributes:
        size: the network and the run.
        seconds: median of one trajectory.
        terms: inputs of the linear model: (GMACs, million numbers that pass through layers, evaluations).
        cache_bytes: the most that the cache held.
        predicted_bytes: the same from the lifetimes.

    """

    size: Size
    seconds: float
    terms: tuple[float, float, float]
    cache_bytes: int
    predicted_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class LinearModel:
    """seconds = a * GMACs + b * million numbers + c * evaluations, none of them negative.

    Attributes:
        coefficients: (a, b, c): 1 / a is the speed of the products, b what each number costs that passes a layer
            (norms, activations, sums), c what an evaluation costs by itself.

    """

    coefficients: tuple[float, float, float]

    @classmethod
    def fit(cls, measured: Sequence[TimedSize]) -> LinearModel:
        """Fit to what was measured, by relative errors; a coefficient that would be negative is left out."""
        terms = np.array([m.terms for m in measured])
        seconds = np.array([m.seconds for m in measured])
        used = list(range(terms.shape[1]))
        while True:
            solution = np.linalg.lstsq(terms[:, used] / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
            if (solution >= 0).all():
                break
            del used[int(solution.argmin())]
        coefficients = np.zeros(terms.shape[1])
        coefficients[used] = solution
        return cls((float(coefficients[0]), float(coefficients[1]), float(coefficients[2])))

    def seconds(self, terms: Sequence[float]) -> float:
        """Return the predicted seconds of a run with these terms."""
        return float(np.dot(self.coefficients, terms))


class Run:
    """A network of a size, with weights of no meaning, ready to be timed.

    Args:
        size: the network and the run.
        device: device to run on.
        precision: precision of the network, see `Sampler`; None = 32 bits, products as torch is set.

    """

    def __init__(self, size: Size, *, device: torch.device | str = "cpu", precision: str | None = None) -> None:
        self.size = size
        side = int(size.tokens**0.5)
        if side**2 != size.tokens:
            raise ValueError(f"tokens must be a square number (patches of a square image), got {size.tokens}")
        net = DiT(
            input_size=2 * side, hidden_size=size.hidden_size, depth=size.depth, num_heads=size.hidden_size // 64
        )
        net = net.eval().requires_grad_(False).to(device)
        plain = Sampler(net, solver="ddim", num_evaluations=size.num_evaluations, cfg_scale=4.0)
        half = tuple(bool(layer % 2) for layer in range(net.num_layers))
        rows = tuple(half if e % 2 else (True,) * net.num_layers for e in range(size.num_evaluations))
        graph = CacheGraph.blank(binding_of(net, plain.solver, weights_bound=False), rows=rows)
        self.sampler = Sampler(net, graph=graph, cfg_scale=4.0, precision=precision)
        rows_run = 2 * size.batch_size
        computed = sum(sum(row) for row in rows)
        numbers = rows_run * size.tokens * size.hidden_size * computed
        macs = rows_run * count_macs(net).of_graph(graph)
        self.terms = (macs / 1e9, numbers / 1e6, float(size.num_evaluations))
        self.labels = labels_in_turn(net.num_labels, size.batch_size)
        self.noise = seeded_noise(net.input_shape, 0, size.batch_size)

    def seconds(self) -> float:
        """Sample once, return the time."""
        return seconds_of(lambda: self.sampler.sample(self.labels, noise=self.noise))


def measure(
    sizes: Sequence[Size],
    *,
    repetitions: int,
    device: torch.device | str = "cpu",
    precision: str | None = None,
    progress: bool = True,
) -> list[TimedSize]:
    """Time sizes in alternation, medians of several repetitions each; device and precision as in `Run`."""
    runs = [Run(size, device=device, precision=precision) for size in sizes]
    times: list[list[float]] = [[] for _ in runs]
    with tqdm(total=(repetitions + 1) * len(runs), desc="timing", unit="run", disable=not progress) as bar:
        for repetition in range(-1, repetitions):
            for run, seconds in zip(runs, times, strict=True):
                taken = run.seconds()
                if repetition >= 0:  # the first call of anything is slow
                    seconds.append(taken)
                bar.update()
    return [
        TimedSize(
            size=run.size,
            seconds=float(np.median(seconds)),
            terms=run.terms,
            cache_bytes=run.sampler.cache_peak_bytes,
            predicted_bytes=run.sampler.cache_bytes(run.size.batch_size),
        )
        for run, seconds in zip(runs, times, strict=True)
    ]
