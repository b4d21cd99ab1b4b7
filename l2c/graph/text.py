"""A cache graph in text, for people."""

from __future__ import annotations

from l2c.graph.fields import GraphFields
from l2c.graph.predictor import HOLD
from l2c.graph.statistics import removed_fraction_of
from l2c.io.names import shown


def headline(graph: GraphFields) -> str:
    """Return one line: what the graph is for."""
    guidance = "any guidance" if graph.cfg_scale is None else f"guidance {graph.guidance} {graph.cfg_scale:g}"
    solver = f"{shown(graph.solver)}, {graph.num_evaluations} evaluations"
    return f"cache graph for {shown(graph.model)}: {solver}, {guidance}"


def short(graph: GraphFields) -> str:
    """Return the graph's `repr`: one line."""
    return (
        f"<CacheGraph for {shown(graph.model)}: {shown(graph.solver)}, {graph.num_evaluations} evaluations x "
        f"{graph.num_layers} layers, {graph.num_reused} reused>"
    )


def summary(graph: GraphFields) -> str:
    """Return a few lines: what the graph is for, what it removes, each row (`#` computes, `.` reuses)."""
    assert graph.routed is not None
    routed = set(graph.routed)
    lines = [
        headline(graph),
        f"{graph.num_reused} of {graph.num_evaluations * graph.num_layers} layers reused: "
        f"{100 * graph.removed_fraction:.2f} % of the {len(graph.routed)} routed evaluations "
        f"(attention {100 * removed_fraction_of(graph, 'attn'):.2f} %, "
        f"MLP {100 * removed_fraction_of(graph, 'mlp'):.2f} %), "
        f"{100 * graph.removed_fraction_overall:.2f} % of all; "
        f"at most {graph.peak_kept} outputs held"
        + ("" if graph.correction is None else f"; corrected by {shown(graph.correction.path.name)}"),
    ]
    for e, (t, row) in enumerate(zip(graph.timesteps, graph.rows, strict=True)):
        mark = ("routed" if e in routed else "full") + ("" if graph.reuse[e] == HOLD else f", {graph.reuse[e]}")
        lines.append(f"{e:4d}  t {t:8.2f}  {''.join('#' if bit else '.' for bit in row)}  {mark}")
    return "\n".join(lines)
