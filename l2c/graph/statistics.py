"""Provenance and cost of a cache graph, and the counts and shares that follow from its rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from l2c.graph.fields import GraphFields
from l2c.graph.given import text
from l2c.graph.layer_names import layers_of
from l2c.io.numbers import finite_number
from l2c.io.version import __version__

# What makers of graphs measure, by its name in a file.
MACS, WORTH, SPEED_UP = "macs_per_evaluation", "evaluations_worth_of_macs", "macs_speed_up"
UNKNOWN = "expected_mse_unknown"  # why the next two are null
ERROR, SPREAD = "expected_mse", "expected_mse_standard_error"  # per pixel, and of it over trajectories
JUDGED = "true_mse"  # per pixel, on the few noises that several graphs were compared on
LEAST_WORTH = 1e-9
SLACK = 1e-6  # evaluations' worth, of rounding: it must not refuse the ends of a range
COUNTED = (
    "num_evaluations",
    "num_routed",
    "num_layers",
    "num_reused",
    "removed_fraction",
    "removed_fraction_attention",
    "removed_fraction_mlp",
    "removed_fraction_overall",
    "peak_kept_outputs",
)


def made_by(method: str, hyperparameters: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    """Return the provenance of a graph.

    Args:
        method: name of the policy, objective or import.
        hyperparameters: the settings of the method that decide the graph.
        further: what else decides it, by name.

    """
    return {"method": method, "hyperparameters": dict(hyperparameters), **further, "l2c": __version__}


def check_measured(graph: GraphFields) -> None:
    """Refuse figures that no maker of a graph can have measured; those of other names may be anything.

    Raises:
        ValueError: if a cost, an expected or a true error is no number in its range, or `UNKNOWN` no text.

    """
    ranges = {WORTH: (LEAST_WORTH, graph.num_evaluations + SLACK)}
    for name, value in graph.measured.items():
        if name in (MACS, WORTH, SPEED_UP, JUDGED) or (name in (ERROR, SPREAD) and value is not None):
            low, high = ranges.get(name, (0.0, math.inf))
            finite_number(name, value, low=low, high=high)
        elif name == UNKNOWN:
            text(name, value)


def removed_fraction_of(graph: GraphFields, kind: str) -> float:
    """Return the share of one kind of layer reused in the routed rows; 0 where there is none.

    Args:
        graph: the graph.
        kind: `attn` or `mlp`.

    """
    return share_reused(graph, layers_of(kind, graph.layers))


def share_reused(graph: GraphFields, layers: Collection[int]) -> float:
    """Return the share of some layers, given by their indices, reused in the routed rows; 0 where there is none."""
    assert graph.routed is not None
    total = len(graph.routed) * len(layers)
    return sum(not graph.rows[e][i] for e in graph.routed for i in layers) / total if total else 0.0


def counted(graph: GraphFields) -> dict[str, Any]:
    """Return the counts and shares by the names of `COUNTED`; shares are rounded to 6 digits."""
    assert graph.routed is not None
    values = (
        graph.num_evaluations,
        len(graph.routed),
        graph.num_layers,
        graph.num_reused,
        round(graph.removed_fraction, 6),
        round(removed_fraction_of(graph, "attn"), 6),
        round(removed_fraction_of(graph, "mlp"), 6),
        round(graph.removed_fraction_overall, 6),
        graph.peak_kept,
    )
    return dict(zip(COUNTED, values, strict=True))


def statistics_of(graph: GraphFields) -> dict[str, Any]:
    """Return what the maker measured, and the counts and shares that follow from the rows."""
    return {**graph.measured, **counted(graph)}
