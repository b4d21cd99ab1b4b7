"""A cache graph on a page: a heat map whose cells say what they are under the pointer."""

from __future__ import annotations

import json
from html import escape

from l2c.graph.cache_graph import CacheGraph
from l2c.report.decisions import (
    decisions,
    evaluation_label,
    graph_title,
    kind_in_words,
    meaning,
    named_blocks,
    palette,
    printable,
)
from l2c.report.page import text_html

SIZE, LEFT, TOP = 14, 82, 16  # units of the drawing: a cell, room for the names of rows and of blocks
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def graph_html(graph: CacheGraph, caption: str, *, opened: bool = True) -> str:
    """Return a graph's heat map under a caption that folds it.

    Args:
        graph: the graph.
        caption: what the graph is, in words.
        opened: whether it is shown from the start.

    """
    decided = decisions(graph)
    colours = palette([name for row in decided for name in row])
    names = list(colours)
    key = "".join(f'<li><i style="background:{c}"></i>{text_html(meaning(name))}</li>' for name, c in colours.items())
    data = {
        "rows": ["".join(DIGITS[names.index(name)] for name in row) for row in decided],
        "decisions": list(map(meaning, names)),
        "layers": [printable(f"{name} ({kind_in_words(name)})") for name in graph.layers],
        "timesteps": [f"{t:.6g}" for t in graph.timesteps],
        "size": SIZE,
        "left": LEFT,
        "top": TOP,
    }
    shown = " open" if opened else ""
    return (
        f'<details class="graph"{shown}><summary>{text_html(caption)}</summary>'
        f'<p>{text_html(graph_title(graph))}</p><ul class="key">{key}</ul>'
        '<span class="said" aria-live="polite">Point at a cell, or move with the arrow keys.</span>'
        f'<div class="wide">{_svg(graph, decided, colours)}</div>'
        f'<script type="application/json">{_json(data)}</script></details>'
    )


def _json(data: object) -> str:
    """Return JSON that cannot end the element it stands in."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _svg(graph: CacheGraph, decided: tuple[tuple[str, ...], ...], colours: dict[str, str]) -> str:
    """Return the drawing: a path per colour, names of rows on the left and of blocks above."""
    width, height = LEFT + SIZE * graph.num_layers + 2, TOP + SIZE * len(decided) + 2
    paths = []
    for name, colour in colours.items():
        cells = "".join(
            f"M{LEFT + column * SIZE} {TOP + row * SIZE}h{SIZE - 1}v{SIZE - 1}h{1 - SIZE}z"
            for row, of_row in enumerate(decided)
            for column, decision in enumerate(of_row)
            if decision == name
        )
        paths.append(f'<path fill="{colour}" d="{cells}"/>')
    rows = "".join(
        f'<text x="{LEFT - 5}" y="{TOP + e * SIZE + 10}" text-anchor="end">{evaluation_label(e, t)}</text>'
        for e, t in enumerate(graph.timesteps)
    )
    heads, lines, free = [], [], 0.0
    for block in named_blocks(graph.layers):
        left = LEFT + block.layers[0] * SIZE
        if block.layers[0]:
            lines.append(f"M{left - 0.5} {TOP - 6}V{height}")
        if left >= free:  # names that would touch the one before are left to the pointer
            last = block.layers[-1] + 1 == graph.num_layers  # it has the room beside the drawing
            whole = block.label.isdigit() or last
            label = block.label if whole else block.label[: SIZE * len(block.layers) // 6]
            width = max(width, left + 4 + 6 * len(label)) if last else width
            heads.append(f'<text x="{left + 2}" y="{TOP - 5}">{escape(printable(label))}</text>')
            free = left + 4 + 6 * len(label)
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" tabindex="0" '
        f'aria-label="{text_html(graph_title(graph))}">{"".join(paths)}'
        f'<path fill="none" stroke="currentColor" stroke-width="0.7" opacity="0.6" d="{"".join(lines)}"/>'
        f"{rows}{''.join(heads)}"
        f'<text x="{LEFT - 5}" y="{TOP - 5}" text-anchor="end">block</text>'
        f'<rect class="cursor" width="{SIZE - 1}" height="{SIZE - 1}"/></svg>'
    )
