"""A cache graph in text, for people."""

from __future__ import annotations

from l2c.graph.fields import GraphFields
from l2c.graph.layer_names import layers_of
from l2c.graph.predictor import HOLD
from l2c.graph.statistics import ERROR, JUDGED, SPREAD, UNKNOWN, WORTH, share_reused
from l2c.io.names import shown

NUMBER = (int, float)


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
    """Return a few lines: what the graph is for, what it removes, each row (`#` computes, `.` reuses, `-` idles)."""
    assert graph.routed is not None
    routed = set(graph.routed)
    lines = [
        headline(graph),
        f"{graph.num_reused} of {graph.num_evaluations * graph.num_layers} layers reused: "
        f"{100 * graph.removed_fraction:.2f} % of the {len(graph.routed)} routed evaluations{_by_kind(graph)}, "
        f"{100 * graph.removed_fraction_overall:.2f} % of all; "
        f"at most {graph.peak_kept} outputs held"
        + ("" if graph.correction is None else f"; corrected by {shown(graph.correction.path.name)}"),
        *_measured(graph),
    ]
    for e, (t, row, weights) in enumerate(zip(graph.timesteps, graph.rows, graph.entry_weights, strict=True)):
        marks = "".join("#" if bit else "." if reads else "-" for bit, reads in zip(row, weights, strict=True))
        mark = ("routed" if e in routed else "full") + ("" if graph.reuse[e] == HOLD else f", {graph.reuse[e]}")
        lines.append(f"{e:4d}  t {t:8.2f}  {marks}  {mark}")
    return "\n".join(lines)


def _by_kind(graph: GraphFields) -> str:
    """Return the shares reused of attention, MLP and other layers, where some are one of the first two."""
    parts = {"attention": layers_of("attn", graph.layers), "MLP": layers_of("mlp", graph.layers)}
    known = parts["attention"] | parts["MLP"]
    if not known:
        return ""
    parts["others"] = layers_of("all", graph.layers) - known
    shares = [f"{what} {100 * share_reused(graph, part):.2f} %" for what, part in parts.items() if part]
    return f" ({', '.join(shares)})"


def _measured(graph: GraphFields) -> list[str]:
    """Return what the graph's maker said of it: its method, MACs and expected error."""
    figures = WORTH, ERROR, SPREAD, JUDGED
    said = {name: value for name in figures if isinstance(value := graph.measured.get(name), NUMBER)}
    parts = []
    if said.get(WORTH):
        worth = said[WORTH]
        speed_up = graph.num_evaluations / worth
        parts.append(f"{worth:.4g} of {graph.num_evaluations} evaluations' worth of MACs ({speed_up:.2f} x)")
    if ERROR in said:
        spread = f" \u00b1 {said[SPREAD]:.2g}" if SPREAD in said else ""
        parts.append(f"expected squared error per pixel {said[ERROR]:.3g}{spread}")
    elif UNKNOWN in graph.measured:
        parts.append(f"expected squared error not known: {shown(graph.measured[UNKNOWN], 300)}")
    if JUDGED in said:
        parts.append(f"true one of a few noises {said[JUDGED]:.3g}")
    if method := graph.provenance.get("method"):
        parts.append(f"made by {shown(method, 60)}")
    return ["; ".join(parts)] if parts else []
