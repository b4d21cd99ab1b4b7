"""A comparison as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from l2c.report.method_table import Cell, lines

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15rem .7rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:nth-child(2),th:nth-child(2){text-align:left}img{max-width:100%}figure{display:inline-block;margin:1rem 0}"
)


def html_report(title: str, cells: Sequence[Cell], pictures: Mapping[str, Path], note: str) -> str:
    """Return the page: the table of lines and the pictures by caption, both inside the file."""
    head = ("budget", "method", "MACs (evaluations)", "MSE x 1e-5", "against the least", "speed-up", "seeds")
    rows = [
        (
            f"{line.target:g}",
            line.method,
            f"{line.evaluations_worth:.2f}",
            f"{1e5 * line.mse:.3g} ± {1e5 * line.standard_error:.2g}",
            line.verdict,
            f"{line.speed_up:.2f} x",
            str(line.num_seeds),
        )
        for line in lines(cells)
    ]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    figures = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{_base64(path)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, path in pictures.items()
    )
    header = "".join(f"<th>{name}</th>" for name in head)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>"
        f"<table><tr>{header}</tr>{body}</table>{figures}</body></html>\n"
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
