"""Responses measured at some times, carried to others: another number of steps, another shift, another solver.

The response of an entry is `J_e (f(t_2) - f(t))`, with `J_e` the derivative of the image by a layer's output at time
t and t_2 the time of an older output. Two factors make `J_e`: how far the network's output moves the state in the
solver's step, which is known in closed form, and how the state moves the image, which changes slowly with time as
long as steps are small. So `J_e` over the first factor is interpolated linearly between the evaluations measured, and
f by a cubic spline through the outputs before and after each of them.

A network's outputs are not smooth functions of time, because the embedding of t has high frequencies. Interpolated
outputs are smoother than true ones, so a random residual is added to them. Its size is a share of the error with
which the outputs nearby in time predict an output that was left out. Fitted slopes then do not rely on the
smoothness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from l2c.calibration.grid import Grid, places
from l2c.io.seeds import draw_normal

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline
    from torch import Tensor

Array = npt.NDArray[np.floating]
SOFT = 0.1  # of the trajectory: f changes with the logarithm of the time left, but not at its very end
ROUGH = 0.3  # of what a left-out output differs by: how far an interpolated one is taken to be off halfway
BETWEEN = ("responses_between", "responses_ahead_between")  # of outputs between evaluations, see `ResponsesOnGrid.of`
FURTHER = 0.1  # of the last step: how far beyond the last output a spline through the others holds
MOST_BYTES = 2**32  # of carried responses
SLACK = 1e-6  # of the trajectory: times that differ by less are the same


@dataclass(frozen=True)
class ResponsesOnGrid:
    """Responses of one grid.

    Attributes:
        grid: the evaluations.
        responses: (E, L, A, M), to outputs 1..A evaluations older, see `measure_responses`.
        ahead: (E, L, B, M), to outputs 1..B evaluations younger.
        per: into how many parts known outputs divide the time from one evaluation to the next; A and B count parts.

    """

    grid: Grid
    responses: Array
    ahead: Array
    per: int = 1

    @classmethod
    def of(cls, grid: Grid, tensors: Mapping[str, Tensor]) -> ResponsesOnGrid:
        """Return responses from the tensors of a calibration of one kind of layers; see `measure_both_ways`."""
        known = [tensors[name].numpy() for name in ("responses", "responses_ahead")]
        between = [tensors[name].numpy() for name in BETWEEN if name in tensors]
        per = 1 + (between[0].shape[2] // known[0].shape[2] if between else 0)
        if per > 1:
            known = [_interleaved(*both, per) for both in zip(known, between, strict=True)]
        return cls(grid, known[0], known[1], per)


def _interleaved(whole: Array, between: Array, per: int) -> Array:
    """Return responses (E, L, A, M) to outputs of evaluations and those (E, L, A (per - 1), M) between, in order."""
    count, num_layers, ages, size = whole.shape
    parts = between.reshape(count, num_layers, ages, per - 1, size)
    return np.concatenate([parts, whole[:, :, :, None]], axis=3).reshape(count, num_layers, ages * per, size)


def carry(measured: ResponsesOnGrid, wanted: Grid, *, max_age: int) -> Array:
    """Return responses (E', L, max_age, M) at other times; NaN where the measured ages do not reach.

    Args:
        measured: the responses, with the grid that they were measured at.
        wanted: the grid to carry them to.
        max_age: the oldest output wanted, in evaluations of the wanted grid.

    Raises:
        ValueError: if times lie outside those measured, or responses to all ages would take too much memory.

    """
    check_reach_in_time(measured.grid, wanted)
    check_size(measured, len(wanted.timesteps), max_age)
    grid = measured.grid
    source = _Source(measured)
    u = _bent(places(wanted.timesteps, grid))
    keys = _keys(grid, grid), _keys(wanted, grid)
    kinds = _kinds(grid), _kinds(wanted)
    _, num_layers, _, size = measured.responses.shape
    rough = (
        _between(source.times, u)[:, None, None]
        * draw_normal((len(u), num_layers, size), "doubt of carried responses", 0).numpy()
    )
    carried = np.full((len(u), num_layers, max_age, size), np.nan, dtype=np.float32)
    for e in range(1, len(u)):
        same = [i for i, kind in enumerate(kinds[0]) if kind == kinds[1][e]] or range(len(grid.timesteps))
        near = _neighbours(keys[0], list(same), keys[1][e])
        older = u[max(e - max_age, 0) : e][::-1]  # of 1, 2, ... evaluations
        values = [source.at(i, u[e], older) for i, _ in near]  # each (ages, L, M)
        doubt = np.sum([weight * source.roughness(i) for i, weight in near], axis=0)[None, :, None]  # (1, L, 1)
        among = range(e - 1, e - 1 - len(older), -1)
        values = [value + (doubt * (rough[list(among)] - rough[e])).astype(np.float32) for value in values]
        mixed = sum(np.float32(weight) * value for (_, weight), value in zip(near, values, strict=True))
        for value in values:  # where only one of both reaches
            mixed = np.where(np.isnan(mixed), value, mixed)
        carried[e, :, : len(older)] = np.float32(wanted.coefficients[e]) * np.swapaxes(mixed, 0, 1)
    return carried


def check_size(measured: ResponsesOnGrid, count: int, max_age: int) -> None:
    """Refuse carried responses that take more than `MOST_BYTES`.

    Raises:
        ValueError: if they do; the message says how many evaluations would fit.

    """
    _, num_layers, _, size = measured.responses.shape
    taken = 4 * count * num_layers * max_age * size
    if taken > MOST_BYTES:
        fits = int(count * (MOST_BYTES / taken) ** 0.5)  # ages grow with evaluations
        raise ValueError(
            f"responses of {num_layers} layers along {size} directions take {taken / 2**30:.1f} GiB for {count} "
            f"evaluations, allowed are {MOST_BYTES / 2**30:g}; take at most {fits} steps, or a calibration of fewer "
            "trajectories or probes"
        )


def check_reach_in_time(measured: Grid, wanted: Grid) -> None:
    """Refuse times before or after those measured; within one step of them layers are computed.

    Raises:
        ValueError: if a wanted time lies further out.

    """
    taken = [*places(measured.timesteps, measured), *places(measured.ends[-1:], measured)]
    second, last, end = taken[1], taken[-2], taken[-1]
    half = 0.5 / (len(measured.timesteps) - 1)
    for t, place in zip(wanted.timesteps, places(wanted.timesteps, measured), strict=True):
        if not min(end, last - half) - SLACK <= place <= max(2 - second, 1 + half) + SLACK:
            first, final = measured.timesteps[0], measured.timesteps[-1]
            raise ValueError(
                f"the calibration was measured from t = {first:g} to {final:g}, but t = {t:g} is wanted; calibrate "
                "with a solver whose times reach that far"
            )


def _kinds(grid: Grid) -> list[tuple[bool, bool]]:
    """Return the properties of each evaluation at which `J_e` jumps.

    An output may enter the next state, or only that of a step's second evaluation; and a step may take no time: the
    last one of DDIM, from t = 0 to the image.
    """
    return [(d, t == end) for d, t, end in zip(grid.direct, grid.timesteps, grid.ends, strict=True)]


def _bent(place: Sequence[float] | Array) -> Array:
    """Return the coordinate in which outputs are interpolated: nearly the logarithm of the time left."""
    return np.log(np.maximum(np.asarray(place), -SOFT / 2) + SOFT)


def _keys(grid: Grid, like: Grid) -> Array:
    """Return the time that `J_e` is assigned to: the middle of the solver step, which moves the state at its end."""
    return (np.asarray(places(grid.timesteps, like)) + np.asarray(places(grid.ends, like))) / 2


def _neighbours(keys: Array, among: Sequence[int], key: float) -> list[tuple[int, float]]:
    """Return the evaluations whose keys enclose a key, each with its share; outside of all, the nearest one alone."""
    ordered = sorted(among, key=lambda i: keys[i])
    place = int(np.searchsorted(keys[ordered], key))
    if place == 0 or place == len(ordered):
        return [(ordered[min(place, len(ordered) - 1)], 1.0)]
    low, high = ordered[place - 1], ordered[place]
    share = float((key - keys[low]) / (keys[high] - keys[low]))
    return [(low, 1 - share), (high, share)]


def _between(known: Array, times: Array) -> Array:
    """Return how far times lie between known ones, both ascending or descending: 0 at one, 1 halfway."""
    ordered = np.sort(known)
    place = np.clip(np.searchsorted(ordered, times), 1, len(ordered) - 1)
    share = (times - ordered[place - 1]) / (ordered[place] - ordered[place - 1])
    return np.sin(np.pi * np.clip(share, 0, 1)) ** 2


class _Source:
    """Responses per unit of the solver's step, of each evaluation a function of the older output's time."""

    def __init__(self, measured: ResponsesOnGrid) -> None:
        self._measured = measured
        at = places(measured.grid.timesteps, measured.grid)
        count, per = len(at), measured.per
        parts = np.interp(np.arange((count - 1) * per + 1) / per, np.arange(count), at)
        self.times = _bent(parts)  # of all outputs, `per` for each evaluation
        self._end = float(_bent([at[-1] - FURTHER * (at[-2] - at[-1])])[0])
        self._roughness: dict[int, Array] = {}
        self._splines: dict[int, _Spline] = {}

    def at(self, e: int, now: float, older: Array) -> Array:
        """Return values (ages, L, M) of one evaluation: `J_e (f(older) - f(now))`; NaN where not measured."""
        spline = self._spline(e)
        if not spline.holds(now):
            return np.full((len(older), *spline.knots.shape[1:]), np.nan, dtype=np.float32)
        values = spline.mixed(spline.shares(older) - spline.shares(now))
        values[~spline.holds(older)] = np.nan
        return values

    def roughness(self, e: int) -> Array:
        """Return how much outputs differ from a smooth function of time, in the units of `at`, (L,).

        It is `ROUGH` times the error with which neighbours in time predict an output that was left out.
        """
        if e not in self._roughness:
            own = e * self._measured.per
            spline, at = self._spline(e), self.times[own]
            others = [i for i, u in enumerate(self.times) if i != own and spline.holds(u)]
            near = sorted(others, key=lambda i: abs(i - own))[:4]
            x, values = self.times[near], spline.mixed(spline.shares(self.times[near]))  # (4, L, M)
            weights = [np.prod([(at - b) / (a - b) for b in x if b != a]) for a in x]
            found = sum(weight * value for weight, value in zip(weights, values, strict=True))
            inside = x.min() < at < x.max()
            self._roughness[e] = ROUGH * inside * np.sqrt(np.square(found).mean(axis=1))
        return self._roughness[e]

    def _spline(self, e: int) -> _Spline:
        """Return `J_e (f(u) - f(u_e))` as a function of u."""
        if e not in self._splines:
            from scipy.interpolate import CubicSpline  # loads slowly, and most calibrations carry nothing

            responses, ahead = self._measured.responses[e], self._measured.ahead[e]
            own = e * self._measured.per
            back = min(own, responses.shape[1])
            on = min(len(self.times) - 1 - own, ahead.shape[1])
            u = self.times[own - back : own + on + 1]
            zero = np.zeros((len(responses), 1, responses.shape[2]), dtype=responses.dtype)
            knots = np.concatenate([responses[:, :back][:, ::-1], zero, ahead[:, :on]], axis=1).swapaxes(0, 1)
            knots = np.ascontiguousarray(knots[::-1] / np.float32(self._measured.grid.coefficients[e]))
            at_end = own + on + 1 == len(self.times)  # of the trajectory: the spline holds a little further
            low, high = self._end if at_end else u[-1], u[0] + SLACK
            self._splines[e] = _Spline(CubicSpline(u[::-1], np.eye(len(u))), knots, low - SLACK, high + SLACK)
        return self._splines[e]


@dataclass(frozen=True)
class _Spline:
    """A cubic spline through values at knots, as the shares that each knot has in a value: small, and linear.

    Attributes:
        shares: of times (T,) the shares (T, K) of the K knots.
        knots: (K, L, M), 32-bit.
        low: the first time at which the spline holds.
        high: the last one.

    """

    shares: CubicSpline
    knots: Array
    low: float
    high: float

    def holds(self, times: Any) -> Any:
        """Return whether the spline holds at times."""
        return (self.low <= times) & (times <= self.high)

    def mixed(self, shares: Array) -> Array:
        """Return the values (T, L, M) of shares (T, K)."""
        return np.tensordot(shares.astype(np.float32), self.knots, axes=1)
