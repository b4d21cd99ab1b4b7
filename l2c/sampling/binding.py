"""Bindings made from a backbone, a solver and guidance, and the agreement of a graph's binding with a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from l2c.backbones.backbone import Backbone, fingerprint
from l2c.backbones.digest import WeightsWatch
from l2c.diffusion import SOLVERS, Guidance, Solver, make_solver, schedule_of
from l2c.graph.binding import (
    Binding,
    check_guidance,
    check_guidance_options,
    check_layers,
    check_num_evaluations,
    check_options,
    check_solver,
    check_weights,
    scale_in_use,
)
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.checks import MAX_EVALUATIONS, MAX_SCALE, OWN_SOLVER
from l2c.io.names import quoted, shown
from l2c.io.numbers import finite_number, whole_number

TIMESTEP_TOLERANCE = 5e-3  # in units of t of 1000; 32-bit solvers of other packages differ by 2e-4


def binding_of(
    backbone: Backbone, solver: Solver, *, weights_bound: bool, guidance: Guidance | float | None = None
) -> Binding:
    """Return the binding of a graph that is made now.

    Args:
        backbone: gives the model's name and layers; a network on the meta device where weights are not bound.
        solver: gives its name, options and times.
        weights_bound: whether the graph depends on the weights; one of random weights, or that nothing was measured
            or trained for, does not.
        guidance: what the graph was measured or trained under, or its scale; None = under none, valid for any scale.

    Raises:
        ValueError: if the weights are bound and cannot be digested.

    """
    conventions = backbone.conventions
    return Binding(
        model=conventions.name,
        layers=tuple(backbone.layer_names),
        solver=solver.name,
        timesteps=solver.timesteps,
        solver_options=dict(solver.options),
        guidance=conventions.guidance,
        cfg_scale=guidance.scale if isinstance(guidance, Guidance) else guidance,
        guidance_options={} if guidance is None else dict(conventions.guidance_options),
        fingerprint=fingerprint(backbone) if weights_bound else None,
    )


def loaded(graph: CacheGraph | str | Path | None) -> CacheGraph | None:
    """Return a graph, read where a path or a name is given."""
    if isinstance(graph, (str, Path)):
        return CacheGraph.load(graph)
    if graph is not None and not isinstance(graph, CacheGraph):
        raise ValueError(f"graph must be a CacheGraph, a path or a bundled name, got {type(graph).__name__}")
    return graph


def agreed(
    backbone: Backbone,
    graph: CacheGraph | None,
    solver: str | None,
    num_evaluations: int | None,
    given: Mapping[str, float],
    any_weights: bool,
) -> tuple[str, int, dict[str, float]]:
    """Return the solver, number of evaluations and options in use; refuse those that contradict the graph."""
    if num_evaluations is not None:
        num_evaluations = whole_number("num_evaluations", num_evaluations, low=1, high=MAX_EVALUATIONS)
    if graph is None:
        if solver is None or num_evaluations is None:
            raise ValueError(
                "a sampler needs a graph, or solver and num_evaluations (e.g. solver='ddim', num_evaluations=20)"
            )
        return solver, num_evaluations, dict(given)
    binding, name = graph.binding, backbone.conventions.name
    check_layers(binding, name, backbone.layer_names)
    if not any_weights:
        check_own_weights(binding, backbone)
    if solver is not None:
        check_solver(binding, solver)
    if num_evaluations is not None:
        check_num_evaluations(binding, num_evaluations)
    check_options(binding, given)
    return binding.solver, binding.num_evaluations, {**binding.solver_options, **given}


def check_own_weights(binding: Binding, backbone: Backbone) -> None:
    """Refuse a graph of other weights than a backbone's.

    Raises:
        ValueError: if they differ.

    """
    check_weights(binding, (backbone.conventions.name, type(backbone).__name__), lambda: fingerprint(backbone))


def watch_of(backbone: Backbone, graph: CacheGraph | None, *, any_weights: bool) -> WeightsWatch | None:
    """Return the check of a backbone's weights before each trajectory; None if any weights are accepted."""
    if graph is None or graph.fingerprint is None or any_weights:
        return None
    return WeightsWatch(backbone, partial(check_own_weights, graph.binding), since="the sampler was made")


def guidance_in_use(
    backbone: Backbone, graph: CacheGraph | None, cfg_scale: float | None, *, any_guidance: bool
) -> Guidance:
    """Return the guidance in use; refuse one that is not the graph's or that the backbone cannot do."""
    conventions = backbone.conventions
    if cfg_scale is not None:
        cfg_scale = finite_number("cfg_scale", cfg_scale, low=-MAX_SCALE, high=MAX_SCALE)
    published = None if conventions.published is None else conventions.published.cfg_scale
    scale = scale_in_use(cfg_scale, None if graph is None else graph.cfg_scale, published)
    if graph is not None:
        check_guidance(graph.binding, conventions.guidance, scale, model=conventions.name, any_guidance=any_guidance)
        mend = "read the pipeline again (pipeline_backbone) with options holding"
        check_guidance_options(graph.binding, conventions.guidance_options, any_guidance=any_guidance, mend=mend)
    guidance = Guidance(conventions.guidance, scale)
    if guidance.active and conventions.null_label is None:
        raise ValueError(
            f"cfg_scale={scale} needs an unconditional label, but {conventions.name} has none; leave cfg_scale out"
        )
    return guidance


def checked_own(
    backbone: Backbone, solver: Solver, num_evaluations: int | None, options: Mapping[str, float]
) -> Solver:
    """Return a solver of a user's own; refuse what it says itself, and a name that is not its own.

    Raises:
        ValueError: if a number of evaluations, an option or the backbone's schedule contradicts it, or its name does
            not begin with `own_`.

    """
    name = solver.name
    if type(solver) is not SOLVERS.get(name) and not OWN_SOLVER.fullmatch(name):
        raise ValueError(
            f"the name of a solver of your own begins with own_, so that graphs tell it from others, and holds small "
            f"letters, digits and _, got {quoted(name)} of {type(solver).__name__}; say name = 'own_...' in it"
        )
    if name in SOLVERS and solver.schedule != schedule_of(backbone.conventions):
        raise ValueError(
            f"{name} was made for another noise schedule or prediction than those of "
            f"{shown(backbone.conventions.name)}; say them where the backbone is made, l2c.wrap(..., schedule=betas)"
        )
    if options or num_evaluations not in (None, solver.num_evaluations):
        said = f"the option {next(iter(options))}" if options else f"num_evaluations={shown(num_evaluations)}"
        raise ValueError(
            f"{shown(name)} has {solver.num_evaluations} evaluations and options of its own, got {said} beside it; "
            "leave that out, or make the solver with it"
        )
    return solver


def solver_for(backbone: Backbone, name: str, num_evaluations: int, **options: float) -> Solver:
    """Return a solver on the backbone's noise schedule, or the one that a pipeline brings along.

    Raises:
        ValueError: if the name or an option is unknown, or the solver is not the pipeline's.

    """
    own: Solver | None = getattr(backbone, "own_solver", None)
    if own is None:
        if isinstance(name, str) and name.startswith("own_"):
            raise ValueError(
                f"unknown solver {shown(name)}; known are {', '.join(SOLVERS)}: pass the solver itself, solver=, "
                "where it is one of your own"
            )
        schedule = schedule_of(backbone.conventions)
        return make_solver(name, schedule, num_evaluations, **options)
    fewer: Mapping[int, Solver] = getattr(backbone, "fewer_steps", {})
    own = fewer.get(num_evaluations, own)
    if name not in ("pipeline", own.name) or num_evaluations != own.num_evaluations:
        raise ValueError(
            f"the pipeline was read with {own.name} and {own.num_evaluations} steps, got {name} and "
            f"{num_evaluations}; read it again with those"
        )
    return own


def tolerance_of(timesteps: Sequence[float]) -> float:
    """Return the largest difference of times that counts as rounding, in units of t."""
    return TIMESTEP_TOLERANCE * min(1.0, max(map(abs, timesteps)) / 1000)
