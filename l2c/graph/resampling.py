"""A finished graph at other times: the rows of the nearest evaluations, slopes rescaled to the new distances."""

from __future__ import annotations

from collections.abc import Sequence

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import floats
from l2c.graph.layer_names import ends_in_output
from l2c.graph.predictor import DIGITS, FITTED, LINEAR, WEIGHTED, reused_layers, slopes_of
from l2c.graph.selection import with_evaluations


def nearest(timesteps: Sequence[float], t: float) -> int:
    """Return the place of the timestep that is nearest to t."""
    return min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))


def nearest_rows(graph: CacheGraph, timesteps: Sequence[float]) -> list[int]:
    """Return the row of a graph that lies nearest to each timestep."""
    return [nearest(graph.timesteps, t) for t in timesteps]


def resampled(graph: CacheGraph, timesteps: Sequence[float]) -> CacheGraph:
    """Return a graph for other timesteps: every evaluation gets the row of the nearest one; the first computes all.

    A fitted slope stays the same multiple of the slope of the line in t. Nobody measured the result, so that it says
    neither MACs nor error: where there is a calibration, a graph made from it for these times is better. At its own
    times a graph stays as it is.

    Args:
        graph: of any times.
        timesteps: t of each evaluation of the result, in the same direction.

    Raises:
        ValueError: if the graph has weights of several outputs, which belong to the evaluations they were made for,
            or the timesteps are no list of numbers.

    """
    timesteps = floats("timesteps", timesteps)
    if not timesteps:
        raise ValueError("timesteps is empty; give one per evaluation")
    if tuple(timesteps) == graph.timesteps:
        return graph
    if WEIGHTED in graph.reuse:
        raise ValueError(
            f"a graph of reuse {WEIGHTED} cannot be resampled from {graph.num_evaluations} evaluations to "
            f"{len(timesteps)}: its weights belong to its own times; make one for these, apply the calibration with "
            "budget= in the graph's place, or make one that reads two outputs (policy.order=2 of l2c graph)"
        )
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
        provenance={**graph.provenance, "resampled_from": graph.num_evaluations},
    )


def _lines(rows: Sequence[Sequence[bool]], timesteps: Sequence[float], *, whole: bool) -> Sequence[Sequence[float]]:
    """Return the slope of the line in t of each reused entry; 0 where fewer than two outputs came before."""
    reused = [reused_layers(row, whole=whole) for row in rows]
    return slopes_of(rows, timesteps, (LINEAR,) * len(rows), ((),) * len(rows), reused=reused)
