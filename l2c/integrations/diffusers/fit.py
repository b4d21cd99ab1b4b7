"""Checks of a graph against a model, its scheduler and its pipeline's call, by the rules of `graph.binding`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from l2c.backbones.digest import known_digest
from l2c.graph.binding import (
    SCHEDULERS,
    check_guidance,
    check_noise,
    check_num_evaluations,
    check_solver,
    check_times,
    check_weights,
    wrong_layers,
)
from l2c.graph.cache_graph import CacheGraph
from l2c.integrations.diffusers.calls import call_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.scheduler_solver import adds_noise
from l2c.integrations.dit_weights import diffusers_layer_names

TOLERANCE = 1e-5  # of the largest timestep: schedulers round in 32 bits
FLOW_TOLERANCE = 4e-3  # of a timestep of flow matching, which some pipelines round to 16 bits
RESAMPLE = "or apply it with resample=True"


def fitted_to(graph: CacheGraph, model: nn.Module, *, any_weights: bool = False) -> CacheGraph:
    """Return the graph under the model's own layer names.

    Raises:
        ValueError: if the model is of another architecture or has other weights.

    """
    name = type(model).__name__
    layers = diffusers_layer_names(graph.layers, model)
    if not all(_has(model, layer) for layer in layers) or (layers == graph.layers and graph.model != name):
        raise wrong_layers(graph.binding, name, find_layers(model))
    graph = graph.replace(layers=layers)
    unlisted = _same_kind(graph, model)
    if unlisted:
        raise ValueError(
            f"the graph was made for {graph.model} with {graph.num_layers} layers, but {name} has "
            f"{len(unlisted)} more of their kind ({unlisted[0]}, ...); take a graph of this model"
        )
    dtype = str(next(model.parameters()).dtype)
    if graph.provenance.get("dtype", "torch.float32") == dtype:  # rounded weights have another digest
        names = (name, name)
        check_weights(graph.binding, names, lambda: known_digest(model), any_weights=any_weights)
    return graph


def check_scheduler(graph: CacheGraph, scheduler: Any) -> None:
    """Refuse a scheduler of another kind than the graph's.

    Raises:
        ValueError: if it is of another kind.

    """
    made_for = SCHEDULERS.get(graph.solver, graph.solver)
    mend = f"set pipe.scheduler = {made_for}.from_config(pipe.scheduler.config), {RESAMPLE}"
    check_solver(graph.binding, type(scheduler).__name__, mend=mend)


def check_timesteps(graph: CacheGraph, timesteps: Sequence[float]) -> None:
    """Refuse other timesteps than the graph's, in the units of the model.

    Raises:
        ValueError: if their number or one of them differs.

    """
    mend = f"call the pipeline with the graph's number of steps, {RESAMPLE}"
    check_num_evaluations(graph.binding, len(timesteps), mend=mend)
    largest = max(map(abs, graph.timesteps))
    flow = FLOW_TOLERANCE if largest <= 1 else 0.0
    mend = f"give the scheduler the graph's settings (timestep_spacing, shift, ...), {RESAMPLE}"
    check_times(graph.binding, timesteps, lambda t: max(TOLERANCE * largest, flow * abs(t)), mend=mend)


def check_call(graph: CacheGraph, pipe: Any, *, any_guidance: bool = False) -> None:
    """Refuse steps or guidance of the pipeline's running call that are not the graph's.

    Guidance scale and eta are read from the call's arguments; outside of a call nothing is known and refused.

    Args:
        graph: the graph.
        pipe: the pipeline.
        any_guidance: accept another guidance scale.

    Raises:
        ValueError: if the guidance scale differs, or noise is added to trajectories that the graph extrapolates.

    """
    call = call_of(pipe)
    given = {} if call is None else dict(call.f_locals)
    if "guidance_scale" in given:
        scale, embedded = given["guidance_scale"], graph.guidance == "embedded"
        if not embedded:  # pipelines take a scale of 1 or less as off, and make no second branch then
            scale = 1.0 if scale is None or scale <= 1 else scale
        mend = f"call the pipeline with guidance_scale={graph.cfg_scale}"
        check_guidance(graph.binding, None, scale, any_guidance=any_guidance, mend=mend)
    check_noise(graph, draws=adds_noise(pipe.scheduler, eta=given.get("eta") or 0.0))


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name.partition("@")[0])  # `ff@2` is the second call of `ff`
    except AttributeError:
        return False
    return True


def _same_kind(graph: CacheGraph, model: nn.Module) -> list[str]:
    """Return the layers that a model has beyond the graph's, in lists of blocks that the graph names."""
    kinds = {_shape_of(name) for name in graph.layers}
    of = {"layer"} if any(not name.rpartition(".")[2].isdigit() for name in graph.layers) else {"block"}
    try:
        own = find_layers(model, of=tuple(of))
    except ValueError:
        return []
    return [name for name in own if _shape_of(name) in kinds and name not in graph.layers]


def _shape_of(name: str) -> tuple[str, ...]:
    return tuple("*" if part.isdigit() else part for part in name.split("."))
