"""Decisions of a graph and names of layers, in words for pictures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import block_of, blocks, kind_of
from l2c.graph.predictor import FITTED, HOLD, LINEAR, WEIGHTED

COMPUTE, IDLE = "compute", "idle"
MEANINGS = {
    COMPUTE: "computed",
    HOLD: "reused: the last output, held",
    LINEAR: "reused: linear in t",
    FITTED: "reused: fitted slope",
    WEIGHTED: "reused: weighted sum of past outputs",
    IDLE: "not run: the whole output is reused",
}
COLOURS = {
    COMPUTE: "#20455f",
    HOLD: "#f3c35b",
    LINEAR: "#d9713c",
    FITTED: "#5aa9a3",
    WEIGHTED: "#7fb069",
    IDLE: "#e4e4e4",
}
OTHER_COLOURS = ("#b38fc4", "#8c8c8c", "#c9687f", "#93b35a")
KINDS = {"attn": "attention", "mlp": "MLP", "ff": "MLP", "proj_out": "MLP"}


@dataclass(frozen=True)
class Block:
    """One block of a backbone, as the columns of a heat map show it.

    Attributes:
        family: name of the block without its number, `transformer_blocks` for one.
        label: the number, or the whole name of a block that has none.
        layers: indices of its layers.
        kinds: what each layer is, in words; empty for a layer that is a whole block.

    """

    family: str
    label: str
    layers: tuple[int, ...]
    kinds: tuple[str, ...]


def kind_in_words(name: str) -> str:
    """Return the kind of a layer, in words: `attention`, `MLP`, `attention 2`; other kinds keep their own name."""
    kind = kind_of(name)
    stem = kind.rstrip("0123456789")
    if stem not in KINDS:
        return kind
    number = kind[len(stem) :]
    return KINDS[stem] + (f" {number}" if number else "")


def named_blocks(layers: Sequence[str]) -> tuple[Block, ...]:
    """Return the blocks of named layers, in order."""
    found = []
    for group in blocks(layers):
        name = block_of(layers[group[0]])
        family, _, number = name.rpartition(".")
        if not number.isdigit():
            family, number = "", name
        whole = len(group) == 1 and layers[group[0]] == name
        found.append(Block(family, number, group, () if whole else tuple(kind_in_words(layers[i]) for i in group)))
    return tuple(found)


def decisions(graph: CacheGraph) -> tuple[tuple[str, ...], ...]:
    """Return the decision of each entry: `compute`, the predictor of the output, or `idle` where no layer runs.

    An entry that is predicted from one output counts as `hold`, whatever its evaluation's predictor is.
    """
    return tuple(
        tuple(
            COMPUTE if fresh else (reuse if len(weights) > 1 else HOLD) if weights else IDLE
            for fresh, weights in zip(row, of_row, strict=True)
        )
        for row, reuse, of_row in zip(graph.rows, graph.reuse, graph.entry_weights, strict=True)
    )


def palette(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each decision, the known ones first, in a fixed order."""
    known = [name for name in COLOURS if name in names]
    others = sorted(set(names) - set(COLOURS))
    spare = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return {**{name: COLOURS[name] for name in known}, **spare}


def meaning(decision: str) -> str:
    """Return a decision in words."""
    return MEANINGS.get(decision, f"reused: {decision}")


def evaluation_label(evaluation: int, t: float) -> str:
    """Return the name of a row: the evaluation and its t, which keeps digits only where it is small."""
    size = abs(t)
    text = f"{t:.0f}" if size >= 10 or not math.isfinite(t) else f"{t:.3g}"
    return f"{evaluation}  (t {text})"


def graph_title(graph: CacheGraph) -> str:
    """Return the title of a picture of a graph."""
    guidance = "" if graph.cfg_scale is None else f", guidance {graph.cfg_scale:g}"
    method = graph.provenance.get("method")
    made = f"made by {method}; " if method else ""
    return (
        f"{graph.model}, {graph.solver}, {graph.num_evaluations} evaluations{guidance}: "
        f"{made}{100 * graph.removed_fraction_overall:.1f} % of all layers reused"
    )


def printable(text: str) -> str:
    """Return text on one line, with characters that cannot be shown as `?`."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def wrapped(text: str, inches: float) -> str:
    """Return text in lines of a width, of 10-point letters; a word that is longer is broken."""
    return "\n".join(textwrap.wrap(printable(text), max(10, int(inches / 0.078))))
