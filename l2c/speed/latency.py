"""Wall-clock, side by side: variants alternate in one process, medians and their spread are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.diffusion import Solver


@dataclass(frozen=True)
class Latency:
    """Time of one variant.

    Attributes:
        seconds: median over the repetitions.
        spread: half the range between the quartiles, in seconds.
        speed_up: median over the rounds of (time of the first variant / time of this one).
        times: seconds of each round.

    """

    seconds: float
    spread: float
    speed_up: float
    times: tuple[float, ...]

    @property
    def repetitions(self) -> int:
        """Number of rounds."""
        return len(self.times)

    def ratio(self, other: Latency) -> tuple[float, float, float]:
        """Return median and quartiles, over rounds timed in turn, of (time of the other / time of this one)."""
        return ratio_of(other.times, self.times)


def ratio_of(theirs: Sequence[float], own: Sequence[float]) -> tuple[float, float, float]:
    """Return median and quartiles of the quotients of times, round by round."""
    low, middle, high = quartiles([a / b for a, b in zip(theirs, own, strict=True)])
    return middle, low, high


def synchronize() -> None:
    """Wait for every CUDA device that this process works on; at once where there is none."""
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index):  # what works holds memory; waiting for another would set it up
            torch.cuda.synchronize(index)


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the time of a call, with what it has left to do on CUDA devices.

    Args:
        call: the call to time.
        clock: in seconds; wall-clock, or CPU time on a machine that is shared.

    """
    synchronize()
    start = clock()
    call()
    synchronize()
    return clock() - start


def alternate(
    variants: Mapping[str, Callable[[], object]],
    *,
    repetitions: int = 5,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time variants in alternation, after one warm-up each; the first one is what speed-ups refer to.

    Every second round runs in reverse, so that order favours no variant. The clock is that of `seconds_of`.
    """
    for call in variants.values():
        call()
    rounds = timed_rounds(variants, clock)
    bar = tqdm(range(repetitions), desc="timing", unit="round", disable=not progress)
    return latencies([next(rounds) for _ in bar])


def timed_rounds(
    variants: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, float]]:
    """Give the seconds of each variant, round after round without end; every second round runs in reverse."""
    names = list(variants)
    while True:
        seconds = {name: seconds_of(variants[name], clock) for name in names}
        yield {name: seconds[name] for name in variants}
        names.reverse()


def latencies(rounds: Sequence[Mapping[str, float]]) -> dict[str, Latency]:
    """Sum up rounds of at least one; the first variant is what speed-ups refer to."""
    times = {name: [seconds[name] for seconds in rounds] for name in rounds[0]}
    first = next(iter(times.values()))
    result = {}
    for name, values in times.items():
        low, middle, high = quartiles(values)
        ratios = [reference / value for reference, value in zip(first, values, strict=True)]
        result[name] = Latency(
            seconds=middle,
            spread=(high - low) / 2,
            speed_up=statistics.median(ratios),
            times=tuple(values),
        )
    return result


def quartiles(values: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile; of a single value, that value three times."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def evaluations(solver: Solver, model: Callable[[Tensor, float], Tensor], x: Tensor) -> Iterator[Tensor]:
    """Sample from noise x (N, C, H, W), giving the state after each evaluation."""
    trajectory = solver.trajectory(x)
    request = next(trajectory)
    while True:
        output = model(request.x, request.t)
        try:
            request = trajectory.send(output)
        except StopIteration as stop:
            yield stop.value
            return
        yield request.x


def alternate_pieces(
    variants: Mapping[str, Callable[[], Iterator[object]]], *, repetitions: int, progress: bool = False
) -> dict[str, Tensor]:
    """Time runs that come in pieces (evaluations, say), in alternation piece by piece.

    Other load on the machine then affects all variants alike. The order reverses with every piece.

    Returns:
        For each variant the seconds (repetitions, pieces).

    """
    times: dict[str, list[list[float]]] = {name: [] for name in variants}
    with tqdm(desc="timing", unit=" pieces", disable=not progress) as bar:
        for _ in range(repetitions):
            running = {name: start() for name, start in variants.items()}
            for pieces in times.values():
                pieces.append([])
            turn = 0
            while running:
                names = list(running)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    piece = _Piece(running[name])
                    seconds = seconds_of(piece)
                    if piece.ended:
                        del running[name]
                    else:
                        times[name][-1].append(seconds)
                        bar.update()
                turn += 1
    return {name: torch.tensor(pieces) for name, pieces in times.items()}


class _Piece:
    """The next piece of a run, as a call."""

    def __init__(self, run: Iterator[object]) -> None:
        self._run = run
        self.ended = False

    def __call__(self) -> None:
        try:
            next(self._run)
        except StopIteration:
            self.ended = True
