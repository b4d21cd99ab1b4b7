"""Samples of several methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from l2c.report.decisions import printable
from l2c.report.samples import pixels, value_range


def sample_grid(images: Mapping[str, Tensor], labels: Sequence[int] | None = None) -> Figure:
    """Draw samples of several methods from the same noise: a row per method, a column per noise.

    Args:
        images: (N, C, H, W) per method, drawn as `samples.pixels` does.
        labels: N labels for the columns.

    """
    names = list(images)
    count = min(len(batch) for batch in images.values())
    scale = max(value_range(batch) for batch in images.values())
    margin = 0.3 + 0.075 * max(map(len, names))  # inches for the longest name
    top = 0.3 if labels is not None else 0.05
    figure = Figure(figsize=(margin + 0.72 * count, top + 0.05 + 0.74 * len(names)), dpi=110)
    axes = figure.subplots(len(names), count, squeeze=False)
    for name, row in zip(names, axes, strict=True):
        for picture, axis in zip(pixels(images[name][:count], scale), row, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(printable(name), rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    if labels is not None:
        for axis, label in zip(axes[0], labels, strict=False):
            axis.set_title(str(label), fontsize=8)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=margin / figure.get_figwidth(),
        right=0.99,
        bottom=0.05 / height,
        top=1 - top / height,
        wspace=0.06,
        hspace=0.06,
    )
    return figure
