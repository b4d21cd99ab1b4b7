"""The sampler without a graph: that of a graph, of another sampler, or of a config's solver; and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from l2c.backbones.backbone import Backbone
from l2c.backbones.whole_output import under_layers
from l2c.diffusion import SOLVERS
from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.sampler import Sampler


def uncached_of(
    graph: CacheGraph,
    backbone: Backbone,
    *,
    cfg_scale: float | None,
    num_evaluations: int | None = None,
    **settings: Any,
) -> Sampler:
    """Return the sampler whose images a graph's are compared with.

    Args:
        graph: gives the solver and its options.
        backbone: the network.
        cfg_scale: guidance scale, see `Sampler`.
        num_evaluations: None = the graph's.
        settings: further arguments of `Sampler`, such as `precision`.

    """
    return Sampler(
        backbone,
        solver=graph.solver,
        num_evaluations=graph.num_evaluations if num_evaluations is None else num_evaluations,
        cfg_scale=cfg_scale,
        solver_options=graph.solver_options,
        **settings,
    )


def uncached_by(backbone: Backbone, solver: Mapping[str, Any], *, num_evaluations: int | None = None) -> Sampler:
    """Return the sampler of a config's `solver` group.

    Args:
        backbone: the network.
        solver: settings with `name`, `num_evaluations`, `cfg_scale` and `options`.
        num_evaluations: None = the group's.

    """
    return Sampler(
        backbone,
        solver=solver["name"],
        num_evaluations=solver["num_evaluations"] if num_evaluations is None else num_evaluations,
        cfg_scale=solver["cfg_scale"],
        solver_options=solver["options"],
    )


def uncached_like(sampler: Sampler, *, num_evaluations: int | None = None, layers: Sequence[str] = ()) -> Sampler:
    """Return the sampler without the graph of another one, with `num_evaluations` and under `layers` where given.

    Precision and cache settings are not taken over.

    Raises:
        ValueError: if another number of evaluations is asked of a solver of a user's own.

    """
    solver, count = sampler.solver, num_evaluations or sampler.solver.num_evaluations
    backbone, scale = under_layers(sampler.backbone, layers), sampler.guidance.scale
    if count == solver.num_evaluations and not hasattr(backbone, "own_solver"):
        return Sampler(backbone, solver=solver, cfg_scale=scale)
    return Sampler(
        backbone, solver=solver.name, num_evaluations=count, cfg_scale=scale, solver_options=solver.options
    )


def cached_like(sampler: Sampler, graph: CacheGraph, **settings: Any) -> Sampler:
    """Return the sampler with a graph that draws as an uncached one does, by its solver where that is a user's own.

    Args:
        sampler: the uncached sampler.
        graph: the graph.
        settings: further arguments of `Sampler`, such as `any_weights`.

    """
    own = sampler.solver.name not in SOLVERS and not hasattr(sampler.backbone, "own_solver")
    solver = sampler.solver if own else None
    return Sampler(sampler.backbone, graph=graph, solver=solver, cfg_scale=sampler.guidance.scale, **settings)
