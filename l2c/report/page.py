"""One HTML file that explains itself: no network, light and dark, narrow and wide."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from l2c.io.atomic import write_text
from l2c.report.decisions import printable
from l2c.report.own_results import DRAWN, DRAWN_BY

# What the page may load: nothing but what lies in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its head.
        meaning: a sentence that says what it holds.
        words: whether it holds words, which stand on the left.

    """

    name: str
    meaning: str
    words: bool = False


@dataclass(frozen=True)
class TableCell:
    """The text of a table's cell, and the number that it is sorted by; None = sorted by the text."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading as text, its body as HTML."""

    heading: str
    body: str


def page_html(title: str, lead: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Return the whole page.

    Args:
        title: the first heading, text.
        lead: subject of the page, text.
        facts: what was measured and how, by name; a `command` is shown as code.
        sections: the parts, in order.

    """
    package = files("l2c.report")
    style, script = (package.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    links = " ".join(f'<a href="#part-{i}">{text_html(part.heading)}</a>' for i, part in enumerate(sections))
    parts = "".join(
        f'<section id="part-{i}"><h2>{text_html(part.heading)}</h2>{part.body}</section>'
        for i, part in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="{DRAWN[".html"]}" content="{DRAWN_BY}">'
        f'<link rel="icon" href="data:,"><title>{text_html(title)}</title><style>\n{style}</style></head>\n'
        f"<body><h1>{text_html(title)}</h1>{paragraph(lead)}{list_html(facts)}<nav>{links}</nav>\n"
        f"{parts}\n<script>\n{script}</script></body></html>\n"
    )


def write_page(path: str | Path, html: str) -> Path:
    """Write a page; the file appears whole or not at all."""
    write_text(path, html)
    return Path(path)


def text_html(text: str) -> str:
    """Return text as HTML that shows it and does nothing else."""
    return escape(printable(text), quote=True)


def paragraph(text: str) -> str:
    """Return text as a paragraph; nothing of no text."""
    return f"<p>{text_html(text)}</p>" if text else ""


def list_html(facts: Mapping[str, str]) -> str:
    """Return names and what is said of them as a list."""
    rows = []
    for name, value in facts.items():
        said = text_html(value)
        rows.append(f"<dt>{text_html(name)}</dt><dd>{f'<code>{said}</code>' if name == 'command' else said}</dd>")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def table_html(columns: Sequence[Column], rows: Sequence[Sequence[TableCell]], *, best: Sequence[int] = ()) -> str:
    """Return a table that a click on a head sorts, and what its columns mean.

    Args:
        columns: the heads.
        rows: an entry per column each.
        best: indices of the rows to mark.

    """
    heads = "".join(
        f'<th scope="col"{_words(c)} title="{text_html(c.meaning)}"><button>{text_html(c.name)}</button></th>'
        for c in columns
    )
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(
            f"<td{_words(column)}{_order(entry)}>{text_html(entry.text)}</td>"
            for column, entry in zip(columns, row, strict=True)
        )
        lines.append(f'<tr class="best">{cells}</tr>' if i in best else f"<tr>{cells}</tr>")
    meanings = list_html({column.name: column.meaning for column in columns})
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f"<details><summary>What the columns mean</summary>{meanings}</details>"
    )


def _words(column: Column) -> str:
    return ' class="words"' if column.words else ""


def _order(entry: TableCell) -> str:
    return "" if entry.order is None else f' data-order="{entry.order:.9g}"'


def curves_html(figure: Figure, caption: str) -> str:
    """Return a figure, as a drawing that stays sharp, with its caption."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "l2c"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"
    return (
        f'<figure class="curves"><div class="wide"><img alt="{text_html(caption)}" src="{source}"></div>'
        f"<figcaption>{text_html(caption)}</figcaption></figure>"
    )
