"""A finished graph at other times: the rows of the nearest evaluations, slopes rescaled to the new distances."""

from __future__ import annotations

from collections.abc import Sequence

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.checks import check_order
from l2c.graph.given import floats
from l2c.graph.layer_names import ends_in_output
from l2c.graph.predictor import (
    DIGITS,
    FITTED,
    LINEAR,
    WEIGHTED,
    Weights,
    computed_before,
    from_slopes,
    line_slope,
    reused_layers,
    slopes_of,
)
from l2c.graph.selection import with_evaluations


def nearest(timesteps: Sequence[float], t: float) -> int:
    """Return the place of the timestep that is nearest to t."""
    return min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))


def nearest_rows(graph: CacheGraph, timesteps: Sequence[float]) -> list[int]:
    """Return the row of a graph that lies nearest to each timestep."""
    return [nearest(graph.timesteps, t) for t in timesteps]


def resampled(graph: CacheGraph, timesteps: Sequence[float]) -> CacheGraph:
    """Return a graph for other timesteps: every evaluation gets the row of the nearest one; the first computes all.

    A fitted slope stays the same multiple of the slope of the line in t. Weights of several outputs are made of such
    slopes, `held + sum_j s_j (held - older_j)`: each stays the same multiple of the line through the last output and
    its own. Nobody measured the result, so that it says neither MACs nor error: where there is a calibration, a graph
    made from it for these times is better. At its own times a graph stays as it is.

    Args:
        graph: of any times.
        timesteps: t of each evaluation of the result, in the same direction.

    Raises:
        ValueError: if the timesteps are no list of numbers that fall, or rise, all the way, as the graph's do.

    """
    timesteps = floats("timesteps", timesteps)
    if not timesteps:
        raise ValueError("timesteps is empty; give one per evaluation")
    if tuple(timesteps) == graph.timesteps:
        return graph
    if len(graph.timesteps) > 1:
        check_order(timesteps, rising=graph.timesteps[-1] > graph.timesteps[0])
    nearest = nearest_rows(graph, timesteps)
    rows = [graph.rows[i] for i in nearest]
    rows[0] = (True,) * graph.num_layers
    reuse = [graph.reuse[i] for i in nearest]
    whole = ends_in_output(graph.layers)
    old, new = _lines(graph.rows, graph.timesteps, whole=whole), _lines(rows, timesteps, whole=whole)
    fitted: list[tuple[float, ...]] = []
    for e, (i, row) in enumerate(zip(nearest, rows, strict=True)):
        reused = reused_layers(row, whole=whole) if reuse[e] == FITTED else ()
        slopes = (graph.entry_slopes[i][layer] * new[e][layer] / (old[i][layer] or 1.0) for layer in reused)
        fitted.append(tuple(round(slope, DIGITS) for slope in slopes))
    return with_evaluations(
        graph,
        nearest,
        timesteps=tuple(timesteps),
        slopes=tuple(fitted),
        weights=_weights(graph, nearest, rows, timesteps),
        provenance={**graph.provenance, "resampled_from": graph.num_evaluations},
    )


def _weights(
    graph: CacheGraph, chosen: Sequence[int], rows: Sequence[Sequence[bool]], timesteps: Sequence[float]
) -> tuple[tuple[Weights, ...], ...]:
    """Return the weights of `weighted` entries, of rows like chosen ones at other times; see `resampled`.

    Fewer outputs are read where fewer were computed before.
    """
    whole = ends_in_output(graph.layers)
    before, t = computed_before(graph.rows), graph.timesteps
    found = []
    for e, (i, row, past) in enumerate(zip(chosen, rows, computed_before(rows), strict=True)):
        sets: list[Weights] = []
        for layer in reused_layers(row, whole=whole) if graph.reuse[i] == WEIGHTED else ():
            old, new = before[i][layer], past[layer]
            slopes = [-weight for weight in graph.entry_weights[i][layer][1 : len(new)]]
            lines = [
                line_slope(timesteps[e], timesteps[new[0]], timesteps[new[j]])
                / line_slope(t[i], t[old[0]], t[old[j]])
                for j in range(1, len(slopes) + 1)
            ]
            sets.append(from_slopes([slope * line for slope, line in zip(slopes, lines, strict=True)]))
        found.append(tuple(sets))
    return tuple(found)


def _lines(rows: Sequence[Sequence[bool]], timesteps: Sequence[float], *, whole: bool) -> Sequence[Sequence[float]]:
    """Return the slope of the line in t of each reused entry; 0 where fewer than two outputs came before."""
    reused = [reused_layers(row, whole=whole) for row in rows]
    return slopes_of(rows, timesteps, (LINEAR,) * len(rows), ((),) * len(rows), reused=reused)
