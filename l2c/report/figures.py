"""Pictures: routers and graphs as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import HOLD
from l2c.io.atomic import replacing
from l2c.report.decisions import (
    COLOURS,
    COMPUTE,
    Block,
    decisions,
    evaluation_label,
    graph_title,
    meaning,
    named_blocks,
    palette,
    printable,
    wrapped,
)
from l2c.report.own_results import DRAWN, DRAWN_BY

if TYPE_CHECKING:
    from torch import Tensor

COMPUTED, REUSED = COLOURS[COMPUTE], COLOURS[HOLD]
ROOM = 14.0  # inches that the columns of a heat map take at most
LETTER = 0.055  # inches of a character of 7 points
LETTERED = 0.13  # inches of a column that is wide enough for the letter of its kind


class _Columns:
    """The columns of a heat map, a column per layer: how wide they are, and what is written under them."""

    def __init__(self, num_layers: int, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.width = min(0.22, ROOM / num_layers)
        self.inches = self.width * num_layers

    @property
    def label(self) -> str:
        """Say what the columns are."""
        kinds = list(dict.fromkeys(kind for block in self.blocks for kind in block.kinds))
        if not kinds:
            return "layer: a whole block each"
        if self.width >= LETTERED:
            return "layers of each block: " + ", ".join(f"{_letters(kind)} = {kind}" for kind in kinds)
        return "layers of each block, from left to right: " + ", ".join(kinds)

    def write(self, axis: Axes) -> None:
        """Put letters of kinds, numbers of blocks and names of families under the axis, thin lines between blocks."""
        if self.width >= LETTERED:
            letters = {i: _letters(kind) for b in self.blocks for i, kind in zip(b.layers, b.kinds, strict=False)}
            axis.set_xticks(list(letters), list(letters.values()), fontsize=6)
        else:
            axis.set_xticks([])
        axis.tick_params(axis="x", length=0, pad=2)
        below = 0.13 if axis.get_xticklabels() else 0.02
        wide = 1 + max(len(block.label) for block in self.blocks if block.family) if self._numbered else 0
        room = self.inches / len(self.blocks)
        step = max(1, -(-wide * LETTER // room))
        for place, block in enumerate(self.blocks):
            if block.family and place % step == 0:
                self._text(axis, _middle(block.layers), below, block.label)
            if place:
                axis.axvline(block.layers[0] - 0.5, color="white", linewidth=0.9)
        end = self._write_families(axis, below + (0.14 if self._numbered else 0.0))
        axis.set_xlabel(printable(self.label), fontsize=8, labelpad=72 * end - 4)

    @property
    def _numbered(self) -> bool:
        return any(block.family for block in self.blocks)

    def _write_families(self, axis: Axes, below: float) -> float:
        """Write the name of each run of blocks once, on a second line where it would touch the one before.

        Args:
            axis: axis of the heat map.
            below: inches between the axis and the names.

        Returns:
            Inches between the axis and the end of the names.

        """
        runs: list[tuple[str, list[int]]] = []
        for block in self.blocks:
            name = block.family or block.label
            if runs and runs[-1][0] == name:
                runs[-1][1].extend(block.layers)
            else:
                runs.append((name, list(block.layers)))
        end, depth = -1.0, 0.13
        for name, layers in runs:
            middle, half = _middle(layers) * self.width, len(name) * LETTER / 2
            low = middle - half < end
            self._text(axis, _middle(layers), below + (0.13 if low else 0.0), name)
            end, depth = (end, 0.26) if low else (middle + half, depth)
        return below + depth

    def _text(self, axis: Axes, column: float, inches: float, text: str) -> None:
        axis.annotate(
            printable(text),
            (column, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -72 * inches),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            parse_math=False,
        )


def _middle(layers: Sequence[int]) -> float:
    return sum(layers) / len(layers)


def _letters(kind: str) -> str:
    """Return A for attention, M for MLP, A2 for attention 2; of other kinds the initials."""
    name, _, number = kind.partition(" ")
    initials = "".join(word[:1] for word in name.split("_"))
    return {"attention": "A", "MLP": "M"}.get(name, initials) + number


def _heat_map(num_rows: int, blocks: Sequence[Block], title: str) -> tuple[Figure, Axes]:
    """Return a figure and its axis, a row per evaluation and a column per layer."""
    num_layers = sum(len(block.layers) for block in blocks)
    columns = _Columns(num_layers, blocks)
    width = max(6.0, columns.inches + 1.4)
    lines = wrapped(title, width - 1.2)
    height = 1.92 + 0.17 * lines.count("\n") + 0.19 * num_rows
    figure = Figure(figsize=(width, max(2.6, height)), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    axis.set_title(lines, fontsize=10, loc="left", parse_math=False)
    axis.set_ylabel("evaluation, noise at the top", fontsize=8)
    axis.set_xlim(-0.5, num_layers - 0.5)
    columns.write(axis)
    for edge in range(1, num_rows):
        axis.axhline(edge - 0.5, color="white", linewidth=0.4)
    return figure, axis


def router_heatmap(
    weights: Tensor,
    evaluations: Sequence[int],
    timesteps: Sequence[float],
    *,
    step: int | None = None,
    layers: Sequence[str] | None = None,
) -> Figure:
    """Draw soft rows: dark computes, light reuses.

    Args:
        weights: (routed evaluations, 2L) in [0, 1], weight of the newly computed output.
        evaluations: index of each routed evaluation.
        timesteps: t of every evaluation of the trajectory.
        step: training step to name in the title.
        layers: names of the layers; None = attention and MLP of numbered blocks.

    """
    num_rows, num_layers = weights.shape
    if layers is None:
        layers = [f"blocks.{i // 2}.{('attn', 'mlp')[i % 2]}" for i in range(num_layers)]
    when = "" if step is None else f" after {step} steps"
    title = f"routers{when}: weight of the newly computed output"
    figure, axis = _heat_map(num_rows, named_blocks(layers), title)
    image = axis.imshow(weights.numpy(), cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(num_rows), [evaluation_label(e, timesteps[e]) for e in evaluations], fontsize=7)
    bar = figure.colorbar(image, ax=axis, shrink=0.8, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 reuse", "0.25", "0.5", "0.75", "1 compute"], fontsize=7)
    return figure


def graph_heatmap(*graphs: CacheGraph) -> Figure:
    """Draw a graph: computed entries, and the predictor of each reused entry; of several, the parts of a trajectory.

    A column is a layer of that name in any of them; what a graph does not have is white.
    """
    layers = tuple(dict.fromkeys(name for graph in graphs for name in graph.layers))
    decided = [dict(zip(graph.layers, row, strict=True)) for graph in graphs for row in decisions(graph)]
    colours = palette([name for row in decided for name in row.values()])
    number = {name: i for i, name in enumerate(colours)}
    figure, axis = _heat_map(len(decided), named_blocks(layers), "\n".join(map(graph_title, graphs)))
    axis.imshow(
        np.array([[number[row[name]] if name in row else np.nan for name in layers] for row in decided]),
        cmap=ListedColormap(list(colours.values())),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    labels = [evaluation_label(e, t) for graph in graphs for e, t in enumerate(graph.timesteps)]
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    patches = [Patch(color=colour, label=meaning(name)) for name, colour in colours.items()]
    columns = 4 if figure.get_figwidth() > 7.5 else 2
    figure.legend(handles=patches, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the file appears whole or not at all."""
    suffix = Path(path).suffix
    with replacing(path) as temporary:
        said = {DRAWN[suffix]: DRAWN_BY} if suffix in DRAWN else None
        figure.savefig(temporary, format=suffix.lstrip("."), metadata=said)


def save_pixels(image: Image.Image, path: str | Path) -> None:
    """Write an image as PNG; the file appears whole or not at all."""
    said = PngInfo()
    said.add_text(DRAWN[".png"], DRAWN_BY)
    with replacing(path) as temporary:
        image.save(temporary, format="png", pnginfo=said)
