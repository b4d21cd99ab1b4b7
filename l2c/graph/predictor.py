"""What stands in for a reused layer, and how much must be held for it.

With `a` the layer's last computed output and `b` the one before, `a + slope (a - b)` stands in: slope 0 is `hold`,
that of the line in t through both is `linear`, a number per entry is `fitted`; with one output only, it is held.
Every executor, policy and trainer takes the line from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

HOLD, LINEAR, FITTED = REUSES = ("hold", "linear", "fitted")
MAX_SLOPE = 1000.0  # largest size of a given slope; measured and trained ones lie in -1..4
Rows = Sequence[Sequence[bool]]
Slopes = tuple[tuple[float, ...], ...]


def line_slope(t: float, t_last: float, t_before: float) -> float:
    """Return the slope of the line in t.

    Args:
        t: of the evaluation that reuses.
        t_last: of the last computed output.
        t_before: of the one before; another value than `t_last`.

    """
    return (t_last - t) / (t_before - t_last)


Slope = TypeVar("Slope", float, "Tensor")


def weights_of(slope: Slope) -> tuple[Slope, Slope]:
    """Return the weights of the last computed output and of the one before; they add up to 1."""
    return 1 + slope, -slope


def ahead(last: Tensor, before: Tensor, slope: float | Tensor) -> Tensor:
    """Return `last + slope (last - before)` of two outputs of one shape."""
    return weighted(last, before, 1 + slope)


def weighted(last: Tensor, before: Tensor, weight: float | Tensor) -> Tensor:
    """Return `weight last + (1 - weight) before`, see `weights_of`."""
    return before.lerp(last, weight)


def slopes_of(
    rows: Rows, timesteps: Sequence[float], reuse: Sequence[str], fitted: Sequence[Sequence[float]]
) -> Slopes:
    """Return the slope of each entry: 0 where the layer is computed or held, that of the line in t for `linear`.

    Args:
        rows: one row per evaluation, one bool per layer, True = compute.
        timesteps: t of each evaluation, strictly monotone.
        reuse: `hold`, `linear` or `fitted` per evaluation.
        fitted: per evaluation the slopes of its reused layers, in order, where its reuse is `fitted`.

    """
    t, found = timesteps, []
    computed: list[list[int]] = [[] for _ in rows[0]]
    for e, row in enumerate(rows):
        slopes, given = [0.0] * len(row), iter(fitted[e])
        for layer, fresh in enumerate(row):
            past = computed[layer]
            value = next(given) if reuse[e] == FITTED and not fresh else None
            if fresh:
                past.append(e)
            elif reuse[e] != HOLD and len(past) > 1:
                slopes[layer] = line_slope(t[e], t[past[-1]], t[past[-2]]) if value is None else value
        found.append(tuple(slopes))
    return tuple(found)


def held_outputs(rows: Rows, slopes: Slopes) -> tuple[tuple[int, ...], ...]:
    """Return for each evaluation how many computed outputs of each layer (0, 1, 2) are held, because read later."""
    columns = []
    for bits, of_layer in zip(zip(*rows, strict=True), zip(*slopes, strict=True), strict=True):
        computed = list(accumulate(bits))
        wanted, column = 0, []
        for e in reversed(range(len(rows))):
            column.append(min(wanted, computed[e]))
            readers = 2 if of_layer[e] else 1
            wanted = max(wanted - 1, 0) if bits[e] else max(wanted, readers)
        columns.append(column[::-1])
    return tuple(zip(*columns, strict=True))
