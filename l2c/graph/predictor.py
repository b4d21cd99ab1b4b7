"""What stands in for a reused layer, and how much must be held for it.

With `a` the layer's last computed output and `b` the one before, `a + slope (a - b)` stands in: slope 0 is `hold`,
that of the line in t through both is `linear`, a number per entry is `fitted`; with one output only, it is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

HOLD, LINEAR, FITTED = REUSES = ("hold", "linear", "fitted")
Rows = Sequence[Sequence[bool]]
Slopes = tuple[tuple[float, ...], ...]


def slopes_of(
    rows: Rows, timesteps: Sequence[float], reuse: Sequence[str], fitted: Sequence[Sequence[float]]
) -> Slopes:
    """Return the slope of each entry: 0 where the layer is computed or held, that of the line in t for `linear`.

    Args:
        rows: one row per evaluation, one bool per layer, True = compute.
        timesteps: t of each evaluation, strictly decreasing.
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
                line = (t[past[-1]] - t[e]) / (t[past[-2]] - t[past[-1]])
                slopes[layer] = line if value is None else value
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
