"""Wall-clock, side by side: variants alternate in one process, medians and their spread are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Latency:
    """Time of one variant.

    Attributes:
        seconds: median over the repetitions.
        spread: half the range between the quartiles, in seconds.
        speed_up: median over the rounds of (time of the first variant / time of this one).
        repetitions: number of rounds.

    """

    seconds: float
    spread: float
    speed_up: float
    repetitions: int


def _seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    variants: Mapping[str, Callable[[], object]], *, repetitions: int = 5, progress: bool = False
) -> dict[str, Latency]:
    """Time variants in alternation, after one warm-up each; the first one is what speed-ups refer to."""
    for call in variants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(repetitions), desc="timing", unit="round", disable=not progress):
        for name, call in variants.items():
            times[name].append(_seconds(call))
    first = next(iter(times.values()))
    result = {}
    for name, values in times.items():
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        ratios = [reference / value for reference, value in zip(first, values, strict=True)]
        result[name] = Latency(
            seconds=statistics.median(values),
            spread=(quartiles[2] - quartiles[0]) / 2,
            speed_up=statistics.median(ratios),
            repetitions=repetitions,
        )
    return result
