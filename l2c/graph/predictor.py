"""The predictors of reused layers, and the number of outputs to hold for them.

With `a` the layer's last computed output and `b` the one before, a reused output is predicted as `a + slope (a - b)`.
Slope 0 is `hold`, the slope of the line in t through both is `linear`, a number per entry is `fitted`; with only one
output it is held. `weighted` is a sum of up to four past outputs, with weights per entry that add up to 1. All
executors, policies and trainers use these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HOLD, LINEAR, FITTED, WEIGHTED = REUSES = ("hold", "linear", "fitted", "weighted")
MAX_SLOPE = 1000.0  # largest size of a given slope or weight; measured and trained slopes lie in -1..4
MAX_OUTPUTS = 4  # past outputs that a weighted sum may read
DIGITS = 6  # of slopes and weights in a graph
Rows = Sequence[Sequence[bool]]
Slopes = tuple[tuple[float, ...], ...]
Weights = tuple[float, ...]  # of past outputs, the last computed one first; they add up to 1


def line_slope(t: float, t_last: float, t_before: float) -> float:
    """Return the slope of the line in t.

    Args:
        t: timestep of the evaluation that reuses.
        t_last: timestep of the last computed output.
        t_before: timestep of the one before; another value than `t_last`.

    """
    return (t_last - t) / (t_before - t_last)


def weights_of(*slopes: Any) -> tuple[Any, ...]:
    """Return the weights of `a + sum_j slopes[j] (a - b_j)`: of the last output a, then of those before it; sum 1."""
    return (1 + sum(slopes), *(-slope for slope in slopes))


def ahead(last: Tensor, before: Tensor, slope: float | Tensor) -> Tensor:
    """Return `last + slope (last - before)` of two outputs of one shape."""
    return weighted(last, before, 1 + slope)


def weighted(last: Tensor, before: Tensor, weight: float | Tensor) -> Tensor:
    """Return `weight last + (1 - weight) before`, see `weights_of`."""
    return before.lerp(last, weight)


def combined(outputs: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """Return the weighted sum of as many past outputs of one shape as there are weights, the last computed first.

    It can be differentiated in weights that are tensors (0-d).
    """
    newest, *earlier = outputs
    if len(weights) == 1:
        return newest
    if len(weights) == 2:
        return weighted(newest, earlier[0], weights[0])
    value = newest * weights[0]
    for output, weight in zip(earlier, weights[1:], strict=True):
        value = value.add(output, alpha=weight) if isinstance(weight, float) else value + weight * output
    return value


def from_slopes(slopes: Sequence[float]) -> Weights:
    """Return the weights of `a + sum_j slopes[j] (a - b_j)`, with a the last output and b_j those before it.

    The last weight includes the rounding error, so that the weights add up to 1.
    """
    older = [-round(slope, DIGITS) for slope in slopes]
    return (round(1 - sum(older), DIGITS), *older)


def taylor_weights(evaluation: int, past: Sequence[int], order: int) -> Weights:
    """Return the weights of a Taylor forecast from differences over evaluations (TaylorSeer, arXiv 2503.06923).

    Derivatives are those of backward differences, `f' = (f_0 - f_1) / d`, `f'' = (f'_0 - f'_1) / d` with d the
    number of evaluations from the computed output before the last to the last.

    Args:
        evaluation: the one that reuses.
        past: evaluations that computed the outputs at hand, the last one first, `order + 1` of them or fewer.
        order: order of the forecast, 0 (hold), 1 or 2; less where fewer outputs are at hand.

    """
    order = min(order, len(past) - 1)
    if order == 0:
        return (1.0,)
    k, d = evaluation - past[0], past[0] - past[1]
    slopes = [k / d]
    if order > 1:
        before = past[1] - past[2]
        half = k * k / (2 * d)
        slopes = [k / d + half * (1 / d + 1 / before), -half / before]
    return from_slopes(slopes)


def foca_weights(evaluation: int, past: Sequence[int]) -> Weights:
    """Return the weights of a forecast that is calibrated by the last computed change (FoCa, arXiv 2508.16211).

    With v the values of a layer at all evaluations, p the last computed one and `v' = (v_p - v_q) / (p - q)` the
    change up to it, `v_(k+1) = v_k + (v' + v'_(k+1)) / 2` for k = p, p + 1, ... (equation 8). The forecast of BDF2
    (equation 7), put into its own formula of the change (equation 6), gives `v'_(k+1) = v_k - v_(k-1)`.

    Args:
        evaluation: the one that reuses.
        past: evaluations that computed the outputs at hand, the last one first; three are read. The reused output at
            evaluation p - 1 is taken to lie on the line through the two outputs before p.

    """
    p, *older = past[:3]
    if not older:
        return (1.0,)
    gap = p - older[0]
    change = [1 / gap, -1 / gap, 0.0]
    ahead_by = (gap - 1) / (older[0] - older[1]) if len(older) > 1 else 0.0
    before, now = [0.0, 1 + ahead_by, -ahead_by], [1.0, 0.0, 0.0]
    for _ in range(evaluation - p):
        before, now = now, [w + (c + w - b) / 2 for w, c, b in zip(now, change, before, strict=True)]
    return from_slopes([-w for w in now[1 : len(older) + 1]])


FORECASTS: dict[str, Callable[[int, Sequence[int]], Weights]] = {
    "taylor1": partial(taylor_weights, order=1),
    "taylor2": partial(taylor_weights, order=2),
    "foca": foca_weights,
}
RULES = (HOLD, LINEAR, *FORECASTS)  # predictors of a fixed form, with nothing to measure


def reused_layers(row: Sequence[bool], *, whole: bool = False) -> tuple[int, ...]:
    """Return the layers of a row that reuse, in order.

    Args:
        row: one bool per layer, True = compute.
        whole: the last layer is the whole output; where it is reused, no other layer runs.

    """
    if whole and not row[-1]:
        return (len(row) - 1,)
    return tuple(layer for layer, fresh in enumerate(row) if not fresh)


def computed_before(rows: Rows) -> list[list[tuple[int, ...]]]:
    """Return for each entry (evaluation, layer) the evaluations before that computed the layer, the last first."""
    past: list[tuple[int, ...]] = [()] * len(rows[0])
    found = []
    for e, row in enumerate(rows):
        found.append(list(past))
        past = [(e, *of_layer) if fresh else of_layer for fresh, of_layer in zip(row, past, strict=True)]
    return found


def counts_before(rows: Rows) -> Iterator[list[int]]:
    """Yield for each evaluation how many outputs of each layer were computed before it."""
    counts = [0] * len(rows[0])
    for row in rows:
        yield counts
        counts = [count + fresh for count, fresh in zip(counts, row, strict=True)]


def stand_ins(rows: Rows, reuse: str) -> dict[str, Any]:
    """Return one of `RULES` for all entries that rows reuse, as `reuse` and `weights` of a graph.

    Args:
        rows: one row per evaluation, one bool per layer, True = compute.
        reuse: one of `RULES`.

    """
    if reuse not in FORECASTS:
        return {"reuse": (reuse,) * len(rows)}
    weighted = (
        tuple(FORECASTS[reuse](e, of_layer) for of_layer, fresh in zip(past, row, strict=True) if not fresh)
        for e, (row, past) in enumerate(zip(rows, computed_before(rows), strict=True))
    )
    return {"reuse": (WEIGHTED,) * len(rows), "weights": tuple(weighted)}


def slopes_of(
    rows: Rows,
    timesteps: Sequence[float],
    reuse: Sequence[str],
    fitted: Sequence[Sequence[float]],
    *,
    reused: Sequence[Sequence[int]],
) -> Slopes:
    """Return the slope of each entry: 0 where the layer is computed or held, that of the line in t for `linear`.

    Args:
        rows: one row per evaluation, one bool per layer, True = compute.
        timesteps: t of each evaluation, strictly monotone.
        reuse: one of `REUSES` per evaluation; slopes of `weighted` ones are left at 0.
        fitted: per evaluation the slopes of its reused layers, in order, where its reuse is `fitted`.
        reused: those layers, see `reused_layers`.

    """
    t, found = timesteps, []
    for e, (layers, past) in enumerate(zip(reused, computed_before(rows), strict=True)):
        slopes, given = [0.0] * len(rows[e]), iter(fitted[e])
        for layer in layers:
            value = next(given) if reuse[e] == FITTED else None
            if reuse[e] in (LINEAR, FITTED) and len(past[layer]) > 1:
                last, before = past[layer][:2]
                slopes[layer] = line_slope(t[e], t[last], t[before]) if value is None else value
        found.append(tuple(slopes))
    return tuple(found)


def entry_weights(
    rows: Rows,
    slopes: Slopes,
    reuse: Sequence[str],
    given: Sequence[Sequence[Weights]],
    *,
    reused: Sequence[Sequence[int]],
) -> tuple[tuple[Weights, ...], ...]:
    """Return the weights of the past outputs that predict each entry: none if it reads none, `(1.0,)` if it is held.

    Args:
        rows: one row per evaluation, one bool per layer, True = compute.
        slopes: see `slopes_of`.
        reuse: one of `REUSES` per evaluation.
        given: per evaluation the weights of its reused layers, in order, where its reuse is `weighted`.
        reused: those layers, see `reused_layers`.

    """
    found = []
    for e, layers in enumerate(reused):
        of_entry = iter(given[e])
        sets: list[Weights] = [()] * len(rows[e])
        for layer in layers:
            slope = slopes[e][layer]
            sets[layer] = next(of_entry) if reuse[e] == WEIGHTED else weights_of(slope) if slope else (1.0,)
        found.append(tuple(sets))
    return tuple(found)


def held_outputs(rows: Rows, weights: Sequence[Sequence[Weights]]) -> tuple[tuple[int, ...], ...]:
    """Return for each evaluation how many computed outputs of each layer are held, because they are read later.

    Args:
        rows: one row per evaluation, one bool per layer, True = compute.
        weights: see `entry_weights`.

    """
    columns = []
    for bits, of_layer in zip(zip(*rows, strict=True), zip(*weights, strict=True), strict=True):
        computed = list(accumulate(bits))
        wanted, column = 0, []
        for e in reversed(range(len(rows))):
            column.append(min(wanted, computed[e]))
            wanted = max(wanted - 1, 0) if bits[e] else max(wanted, len(of_layer[e]))
        columns.append(column[::-1])
    return tuple(zip(*columns, strict=True))
