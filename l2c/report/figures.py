"""Pictures: routers and graphs as heat maps, samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import blocks
from l2c.io.atomic import replacing

COMPUTED, REUSED = "#20455f", "#f3c35b"


def _layer_axis(figure: Figure, num_rows: int, of_block: Sequence[Sequence[int]], title: str) -> Axes:
    """Make an axis with a row per evaluation and a column per layer, blocks separated by thin lines."""
    axis = figure.add_subplot()
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel("layer: attention and MLP of each block" if len(of_block[0]) == 2 else "layer")
    axis.set_ylabel("evaluation (t), noise at the top")
    shown = range(0, len(of_block), max(1, len(of_block) // 14))
    middles = [sum(of_block[b]) / len(of_block[b]) for b in shown]
    axis.set_xticks(middles, [f"block {b}" for b in shown], fontsize=7, rotation=45, ha="right")
    for block in of_block[1:]:
        axis.axvline(block[0] - 0.5, color="white", linewidth=0.6)
    for edge in range(1, num_rows):
        axis.axhline(edge - 0.5, color="white", linewidth=0.4)
    return axis


def _size(num_rows: int, num_layers: int) -> tuple[float, float]:
    return (max(6.0, 2.5 + 0.22 * num_layers), max(2.6, 1.5 + 0.19 * num_rows))


def router_heatmap(
    weights: Tensor, evaluations: Sequence[int], timesteps: Sequence[float], *, step: int | None = None
) -> Figure:
    """Draw soft rows (routed evaluations, 2L) in [0, 1]: dark computes, light reuses."""
    num_rows, num_layers = weights.shape
    figure = Figure(figsize=_size(num_rows, num_layers), dpi=110, layout="constrained")
    when = "" if step is None else f" after {step} steps"
    pairs = [(layer, layer + 1) for layer in range(0, num_layers - 1, 2)]
    axis = _layer_axis(figure, num_rows, pairs, f"routers{when}: weight of the newly computed output")
    image = axis.imshow(weights.numpy(), cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(num_rows), [f"{e} ({timesteps[e]:.0f})" for e in evaluations], fontsize=7)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def graph_heatmap(graph: CacheGraph) -> Figure:
    """Draw a graph: which layers are computed and which reused, at every evaluation."""
    bits = np.array(graph.rows, dtype=float)
    figure = Figure(figsize=_size(len(graph.rows), graph.num_layers), dpi=110, layout="constrained")
    title = (
        f"{graph.model}, {graph.solver}, {graph.num_evaluations} evaluations: "
        f"{100 * graph.removed_fraction_overall:.1f} % of layers reused"
    )
    axis = _layer_axis(figure, len(graph.rows), blocks(graph.layers), title)
    axis.imshow(bits, cmap=ListedColormap([REUSED, COMPUTED]), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    labels = [f"{e} ({t:.0f})" for e, t in enumerate(graph.timesteps)]
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    for name, colour in (("computed", COMPUTED), ("reused", REUSED)):
        axis.plot([], [], "s", color=colour, label=name)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    return figure


def sample_grid(images: Mapping[str, Tensor], labels: Sequence[int] | None = None) -> Figure:
    """Draw samples of several methods from the same noise: a row per method, a column per noise.

    Args:
        images: (N, C, H, W) in [-1, 1] per method; one channel is drawn in grey, three in colour, of more
            channels (latents) the first three, tokens (N, T, D) as one grey picture.
        labels: N labels for the columns.

    """
    names = list(images)
    count = min(len(batch) for batch in images.values())
    margin = 0.3 + 0.075 * max(map(len, names))  # inches for the longest name
    figure = Figure(figsize=(margin + 0.72 * count, 0.25 + 0.78 * len(names)), dpi=110)
    axes = figure.subplots(len(names), count, squeeze=False)
    for name, row in zip(names, axes, strict=True):
        for i, axis in enumerate(row):
            image = images[name][i]
            pixels = ((image[None] if image.ndim == 2 else image[:3]).clamp(-1, 1) + 1) / 2
            axis.imshow(
                pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy(),
                cmap="gray",
                vmin=0,
                vmax=1,
            )
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    if labels is not None:
        for axis, label in zip(axes[0], labels, strict=False):
            axis.set_title(str(label), fontsize=8)
    figure.subplots_adjust(
        left=margin / figure.get_figwidth(), right=0.99, bottom=0.02, top=0.9, wspace=0.06, hspace=0.06
    )
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the file appears whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip("."))
