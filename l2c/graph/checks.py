"""Checks that the parts of a cache graph do not contradict each other, each a function, in a fixed order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from l2c.graph.binding import GUIDANCES
from l2c.graph.correction_file import DIGEST
from l2c.graph.fields import GraphFields
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output
from l2c.graph.predictor import FITTED, MAX_OUTPUTS, MAX_SLOPE, REUSES, WEIGHTED, counts_before
from l2c.graph.statistics import check_measured
from l2c.io.names import listed, quoted, shown
from l2c.io.numbers import finite_number

MAX_EVALUATIONS = 4096
MAX_LAYERS = 4096
MAX_ENTRIES = 2**21  # evaluations times layers
MAX_TIMESTEP = 1e6
MAX_SCALE = 1000.0  # of guidance
MAX_OPTION = 1e6
WEIGHT_TOLERANCE = 1e-3  # by which a sum of weights may miss 1
OWN_SOLVER = re.compile(r"own_[a-z0-9_]+")  # of a user
SOLVER = re.compile(
    rf"ddim|ddpm|dpm_solver_2s|dpm_solver_2m|flow_euler|flow_dpm_2m|{OWN_SOLVER.pattern}|[A-Z][A-Za-z0-9]*Scheduler"
)


def check_size(graph: GraphFields) -> None:
    """Refuse a graph without rows or layers, or with more of them than any network has."""
    check_counts(len(graph.rows), len(graph.layers))


def check_counts(num_rows: int, num_layers: int) -> None:
    """Refuse no rows or layers, or more of them than any network has.

    Raises:
        ValueError: if a count is 0 or too large.

    """
    if not num_rows or not num_layers:
        raise ValueError(
            f"a cache graph needs rows and layers, got {num_rows} and {num_layers}; "
            "give a row per evaluation, with a bit per layer"
        )
    for what, got, most in (
        ("rows", num_rows, MAX_EVALUATIONS),
        ("layers", num_layers, MAX_LAYERS),
        ("entries (rows times layers)", num_rows * num_layers, MAX_ENTRIES),
    ):
        if got > most:
            raise ValueError(
                f"a cache graph has at most {most} {what}, got {got}; make one for fewer steps or layers"
            )


def check_names(graph: GraphFields) -> None:
    """Refuse layers that share a name."""
    if len(set(graph.layers)) != len(graph.layers):
        raise ValueError("layer names must differ from each other; name each layer of the backbone once")
    if WHOLE_OUTPUT in graph.layers[:-1]:
        raise ValueError(
            f"the layer {WHOLE_OUTPUT} stands for what the whole network returns and must be the last one, got "
            f"{shown(graph.layers[-1])} after it; put it last, or give the layer another name"
        )


def check_row_lengths(graph: GraphFields) -> None:
    """Refuse a row that is longer or shorter than the list of layers."""
    for e, row in enumerate(graph.rows):
        if len(row) != len(graph.layers):
            raise ValueError(
                f"row {e} has {len(row)} entries, but the graph has {len(graph.layers)} layers; "
                "every row needs one entry per layer"
            )


def check_first_row(graph: GraphFields) -> None:
    """Refuse a first row that reuses."""
    if not all(graph.rows[0]):
        first = graph.layers[graph.rows[0].index(False)]
        raise ValueError(
            f"the first row reuses layer {shown(first)}, but nothing is kept before evaluation 0; "
            "the first row must compute every layer"
        )


def check_whole_output(graph: GraphFields) -> None:
    """Refuse a row that reuses the whole output and computes a layer all the same."""
    for e, row in enumerate(graph.rows if ends_in_output(graph.layers) else ()):
        if not row[-1] and any(row):
            raise ValueError(
                f"row {e} reuses the whole output, but computes layer {shown(graph.layers[row.index(True)])}, which "
                f"nothing would read; compute {WHOLE_OUTPUT} too, or no layer"
            )


def check_timesteps(graph: GraphFields) -> None:
    """Refuse times that are not one per row, bounded, and strictly falling (or, for models that count up, rising)."""
    times = graph.timesteps
    if len(times) != len(graph.rows):
        raise ValueError(f"the graph has {len(graph.rows)} rows but {len(times)} timesteps; give one per row")
    for e, t in enumerate(times):
        finite_number(f"timestep {e}", t, low=-MAX_TIMESTEP, high=MAX_TIMESTEP)
    check_order(times, rising=times[-1] > times[0])


def check_order(times: Sequence[float], *, rising: bool) -> None:
    """Refuse times that do not strictly fall (or, for models that count up, rise) all the way."""
    if wrong := out_of_order(times, rising=rising):
        raise ValueError(
            f"timesteps must {'increase' if rising else 'decrease'} from noise to image, got {wrong[1]:g} after "
            f"{wrong[0]:g}; row 0 belongs to the noisiest evaluation"
        )


def out_of_order(times: Sequence[float], *, rising: bool) -> tuple[float, float] | None:
    """Return the first two neighbours that do not strictly rise, or fall; None where all do."""
    return next(((a, b) for a, b in pairwise(times) if not (b > a if rising else b < a)), None)


def check_reuse(graph: GraphFields) -> None:
    """Refuse an unknown way of reuse, and other than one per row."""
    if len(graph.reuse) != len(graph.rows):
        raise ValueError(
            f"reuse has {len(graph.reuse)} entries, but the graph has {len(graph.rows)} rows; give one per row"
        )
    for e, reuse in enumerate(graph.reuse):
        if reuse not in REUSES:
            raise ValueError(f"reuse of evaluation {e} is {quoted(reuse)}, must be {' or '.join(REUSES)}")


def check_slopes(graph: GraphFields) -> None:
    """Refuse slopes that are not one per fitted entry, or out of range."""
    if len(graph.slopes) != len(graph.rows):
        raise ValueError(
            f"slopes has {len(graph.slopes)} entries, but the graph has {len(graph.rows)} rows; give one list per row"
        )
    for e, (layers, slopes) in enumerate(zip(graph.reused, graph.slopes, strict=True)):
        reused = len(layers)
        wanted = reused if graph.reuse[e] == FITTED else 0
        if len(slopes) != wanted or not all(abs(slope) <= MAX_SLOPE for slope in slopes):
            raise ValueError(
                f"evaluation {e} reuses {reused} layers by {graph.reuse[e]} and needs {wanted} finite slopes, got "
                f"{listed(slopes)}; give one in [-{MAX_SLOPE:g}, {MAX_SLOPE:g}] per reused layer where reuse is "
                f"{FITTED}, none elsewhere"
            )


def check_predictor_weights(graph: GraphFields) -> None:
    """Refuse weights that are not one set per `weighted` entry, read more than there is, or do not add up to 1."""
    if len(graph.weights) != len(graph.rows):
        raise ValueError(
            f"weights has {len(graph.weights)} entries, but the graph has {len(graph.rows)} rows; "
            "give one list per row"
        )
    for e, (reused, given, computed) in enumerate(
        zip(graph.reused, graph.weights, counts_before(graph.rows), strict=True)
    ):
        wanted = len(reused) if graph.reuse[e] == WEIGHTED else 0
        if len(given) != wanted:
            raise ValueError(
                f"evaluation {e} reuses {len(reused)} layers by {graph.reuse[e]} and needs {wanted} sets of weights, "
                f"got {len(given)}; give one per reused layer where reuse is {WEIGHTED}, none elsewhere"
            )
        for layer, weights in zip(reused, given, strict=bool(wanted)):
            most = min(MAX_OUTPUTS, computed[layer])
            if not 0 < len(weights) <= most:
                raise ValueError(
                    f"evaluation {e} stands in for layer {shown(graph.layers[layer])} by {len(weights)} outputs; "
                    f"give 1..{most} weights: {computed[layer]} outputs were computed before, and at most "
                    f"{MAX_OUTPUTS} are read"
                )
            if not all(abs(weight) <= MAX_SLOPE for weight in weights) or abs(sum(weights) - 1) > WEIGHT_TOLERANCE:
                raise ValueError(
                    f"weights of evaluation {e}, layer {shown(graph.layers[layer])} must be numbers in "
                    f"[-{MAX_SLOPE:g}, {MAX_SLOPE:g}] that add up to 1, got {listed(weights)}"
                )


def check_routed(graph: GraphFields) -> None:
    """Refuse routed evaluations that do not exist, and rows that reuse without being routed."""
    assert graph.routed is not None
    outside = [e for e in graph.routed if not 0 < e < len(graph.rows)]
    if outside:
        raise ValueError(
            f"evaluation {shown(outside[0])} cannot be routed in a graph of {len(graph.rows)} evaluations; "
            f"routed evaluations lie in 1..{len(graph.rows) - 1}"
        )
    routed = set(graph.routed)
    unrouted = [e for e, row in enumerate(graph.rows) if e not in routed and not all(row)]
    if unrouted:
        raise ValueError(
            f"row {unrouted[0]} reuses layers, but evaluation {unrouted[0]} is not among the routed ones "
            f"{listed(graph.routed)}; add it there or let the row compute everything"
        )


def check_binding(graph: GraphFields) -> None:
    """Refuse a solver, options, guidance or digest that no file could hold."""
    if not SOLVER.fullmatch(graph.solver):
        raise ValueError(
            f"unknown solver {quoted(graph.solver)}; a graph names ddim, ddpm, dpm_solver_2s, dpm_solver_2m, "
            "flow_euler, flow_dpm_2m, a solver of your own, whose name begins with own_, or the class of a diffusers "
            "scheduler, whose name ends in Scheduler"
        )
    for name, value in graph.solver_options.items():
        finite_number(f"the option {shown(name)} of the solver", value, low=-MAX_OPTION, high=MAX_OPTION)
    if graph.guidance is not None and graph.guidance not in GUIDANCES:
        raise ValueError(f"guidance must be one of {', '.join(GUIDANCES)} or None, got {quoted(graph.guidance)}")
    if graph.cfg_scale is not None:
        finite_number("cfg_scale", graph.cfg_scale, low=-MAX_SCALE, high=MAX_SCALE)
    if graph.fingerprint is not None and not DIGEST.fullmatch(graph.fingerprint):
        raise ValueError(
            f"fingerprint must be 'sha256:' and 64 hexadecimal digits or None, got {quoted(graph.fingerprint)}"
        )


CHECKS: tuple[Callable[[GraphFields], None], ...] = (
    check_size,
    check_names,
    check_row_lengths,
    check_first_row,
    check_whole_output,
    check_timesteps,
    check_reuse,
    check_slopes,
    check_predictor_weights,
    check_routed,
    check_binding,
    check_measured,
)
