"""One picture of several methods: their images, the differences to the uncached ones, the worst noises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2c.report.decisions import printable
from l2c.report.samples import AMPLIFIED, Pixels, SampleRow, differences, pixels, said_of, value_range
from l2c.report.table import short

TILE = 0.62  # inches of an image
GAP = 0.04
BETWEEN = 0.16  # inches between methods, and between the first noises and the worst


def error_in_words(mse: float) -> str:
    """Return a mean squared error in the unit of the tables."""
    return f"{short(1e5 * mse)} x 1e-5"


def sample_figure(rows: Sequence[SampleRow], labels: Sequence[int] | None = None) -> Figure:
    """Draw the uncached images once, and for each method its images over their amplified differences.

    On the right are the noises of each method's largest errors, each beside the uncached image.

    Args:
        rows: one per method, of the same first noises.
        labels: labels of the first noises, written over the columns.

    Raises:
        ValueError: if there are no rows, or their first noises differ.

    """
    if not rows or any(row.noises[: row.num_first] != rows[0].noises[: rows[0].num_first] for row in rows):
        raise ValueError("a picture needs at least one row, and rows that begin with the same noises")
    count = rows[0].num_first
    worst = max(len(row.noises) - row.num_first for row in rows)
    margin = 0.25 + 0.07 * max(22, *(len(row.name) for row in rows))
    width = margin + count * (TILE + GAP) + BETWEEN + worst * 2 * (TILE + GAP + 0.05) + 0.1
    note = said_of(rows[0].images)
    top, bottom = 0.45, 0.42
    height = top + TILE + len(rows) * (2 * TILE + GAP + BETWEEN) + bottom
    sheet = _Sheet(width, height)
    scale = max(value_range(row.target) for row in rows)
    shown = pixels(rows[0].target[:count], scale)
    sheet.strip(shown, margin, top)
    sheet.text(margin - 0.1, top + TILE / 2, "uncached", ha="right", va="center", weight="bold")
    for i in range(count):
        of = "" if labels is None or i >= len(labels) else f"\nlabel {labels[i]}"
        where = margin + i * (TILE + GAP) + TILE / 2
        sheet.text(where, top - 0.06, f"noise {rows[0].noises[i]}{of}", ha="center", va="bottom", size=6.5)
    if worst:
        where = margin + count * (TILE + GAP) + BETWEEN
        text = "the worst noises of each method,\nlargest error first: uncached | method"
        sheet.text(where, top + TILE - 0.06, text, ha="left", va="bottom", size=7)
    down = top + TILE + BETWEEN
    for row in rows:
        _draw_row(sheet, row, margin, down, scale)
        down += 2 * TILE + GAP + BETWEEN
    text = f"Lower line of each method: difference to the uncached image x {AMPLIFIED}, grey = none. {note}"
    sheet.text(0.1, height - 0.14, text.strip(), ha="left", va="bottom", size=7)
    return sheet.figure


def _draw_row(sheet: _Sheet, row: SampleRow, left: float, down: float, scale: float) -> None:
    """Draw one method: words, its first noises, its worst ones."""
    worst = "" if row.worst is None else f"\nworst {error_in_words(row.worst)}"
    words = f"MSE {error_in_words(row.mse)}{worst}\n(of {row.num_images} noises)"
    sheet.text(left - 0.1, down + 0.12, row.name, ha="right", va="top", weight="bold")
    sheet.text(left - 0.1, down + 0.32, words, ha="right", va="top", size=7)
    images, apart = pixels(row.images, scale), differences(row, scale)
    uncached = pixels(row.target, scale)
    n, lower = row.num_first, down + TILE + GAP
    sheet.strip(images[:n], left, down)
    sheet.strip(apart[:n], left, lower)
    at = left + n * (TILE + GAP) + BETWEEN
    for i in range(n, len(images)):
        sheet.strip([uncached[i], images[i]], at, down)
        sheet.strip([apart[i]], at + TILE + GAP, lower)
        words = f"noise {row.noises[i]}\n{short(1e5 * row.errors[i])}\nx 1e-5"
        sheet.text(at + TILE / 2, lower + TILE / 2, words, ha="center", va="center", size=6.5)
        at += 2 * (TILE + GAP + 0.05)


class _Sheet:
    """A figure on which strips of pictures and words are placed in inches from the upper left."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), dpi=110)
        self.size = width, height

    def text(self, left: float, down: float, text: str, *, size: float = 8, **style: Any) -> None:
        """Write text, which is never read as a formula."""
        width, height = self.size
        lines = "\n".join(map(printable, text.split("\n")))
        self.figure.text(left / width, 1 - down / height, lines, fontsize=size, parse_math=False, **style)

    def strip(self, pictures: Sequence[Pixels], left: float, down: float) -> None:
        """Draw pictures side by side, each as large as a tile, its pixels as squares."""
        width, height = self.size
        for i, picture in enumerate(pictures):
            place = ((left + i * (TILE + GAP)) / width, 1 - (down + TILE) / height, TILE / width, TILE / height)
            axis: Axes = self.figure.add_axes(place)
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
