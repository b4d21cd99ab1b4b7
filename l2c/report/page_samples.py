"""The picture grid of a page: a row a method, with its differences, its error and its worst noises."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from matplotlib.image import imsave

from l2c.report.page import paragraph, text_html
from l2c.report.sample_figure import error_in_words
from l2c.report.samples import AMPLIFIED, Pixels, SampleRow, differences, pixels, said_of, stack, value_range
from l2c.report.table import short


def samples_html(rows: Sequence[SampleRow]) -> str:
    """Return the grid of some methods; the uncached images of the first noises stand above all."""
    if not rows:
        return ""
    scale = max(value_range(row.target) for row in rows)
    first = rows[0]
    numbers = ", ".join(map(str, first.noises[: first.num_first]))
    above = _strip(pixels(first.target[: first.num_first], scale), "uncached images")
    words = (
        f"Noises {numbers}, then the worst noises of each method, the largest error first, each beside the "
        f"uncached image. The lower line of each method is its difference to the uncached images x {AMPLIFIED}; "
        f"grey = none. Errors are mean squared errors. {said_of(first.images)}"
    )
    methods = "".join(_method(row, scale) for row in rows)
    top = f'<div class="method"><div class="about"><b>uncached</b></div><div class="strips">{above}</div></div>'
    return f"{paragraph(words)}{top}{methods}"


def _method(row: SampleRow, scale: float) -> str:
    """Return the row of one method."""
    images, apart, uncached = pixels(row.images, scale), differences(row, scale), pixels(row.target, scale)
    n = row.num_first
    worst = "" if row.worst is None else f"<span>worst {text_html(error_in_words(row.worst))}</span>"
    about = (
        f'<div class="about"><b>{text_html(row.name)}</b><span>MSE {text_html(error_in_words(row.mse))}</span>'
        f"{worst}<span>of {row.num_images} noises</span></div>"
    )
    strips = (
        f'<div class="strips">{_strip(images[:n], f"images of {row.name}")}'
        f"{_strip(apart[:n], f'differences of {row.name} to the uncached images')}</div>"
    )
    worst_ones = "".join(
        f'<div class="worst">{_strip([uncached[i]], f"uncached image of noise {row.noises[i]}")}'
        f"{_strip([images[i]], f'{row.name}, noise {row.noises[i]}')}"
        f"<span>noise {row.noises[i]}<br>{short(1e5 * row.errors[i])}<br>x 1e-5</span>"
        f"{_strip([apart[i]], f'difference at noise {row.noises[i]}')}</div>"
        for i in range(n, len(images))
    )
    return f'<div class="method">{about}{strips}{worst_ones}</div>'


def _strip(pictures: Sequence[Pixels], alt: str) -> str:
    """Return pictures side by side as one image, its pixels as squares."""
    gap = max(1, pictures[0].shape[1] // 16)
    strip = stack(pictures, gap=gap)
    content = io.BytesIO()
    imsave(content, strip, format="png")
    tiles = strip.shape[1] / pictures[0].shape[1]
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return f'<img alt="{text_html(alt)}" style="width:calc(var(--tile) * {tiles:.4g})" src="{source}">'
