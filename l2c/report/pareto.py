"""Curves of error against cost, a line per method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from l2c.report.method_table import Cell, lines

MARKERS = "osv^Dp*Xh<>"
COLOURS = colormaps["tab20"].colors  # type: ignore[attr-defined]


def pareto(cells: Sequence[Cell]) -> Figure:
    """Draw error against MACs and against measured time, both on logarithmic error axes."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    found = lines(cells)
    for i, method in enumerate(dict.fromkeys(line.method for line in found)):
        mine = [line for line in found if line.method == method and line.mse > 0]
        colour = COLOURS[(2 * i + i // 10) % 20]  # the ten dark ones first
        style = {
            "color": colour,
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1,
            "label": method,
        }
        errors = [1e5 * line.mse for line in mine]
        spread = [min(1e5 * line.standard_error, 0.99 * e) for line, e in zip(mine, errors, strict=True)]
        axes[0].errorbar([line.evaluations_worth for line in mine], errors, yerr=spread, **style)
        axes[1].errorbar([1 / line.speed_up for line in mine], errors, yerr=spread, **style)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("mean squared error x 1e-5")
    axes[0].set_xlabel("MACs, in evaluations")
    axes[1].set_xlabel("time, as a share of the uncached sampler's")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure
