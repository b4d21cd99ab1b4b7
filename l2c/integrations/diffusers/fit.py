"""Checks of a graph against a model, its scheduler and its pipeline's call, by the rules of `graph.binding`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from l2c.backbones.backbone import class_name
from l2c.backbones.digest import known_digest
from l2c.backbones.forwards import without_wrapper
from l2c.graph.binding import (
    SCHEDULERS,
    check_guidance,
    check_guidance_options,
    check_noise,
    check_num_evaluations,
    check_solver,
    check_times,
    check_weights,
    wrong_layers,
)
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import block_of, own_layers
from l2c.integrations.diffusers.adapters import (
    FUSED,
    PICTURES,
    SCALE,
    at_work,
    base_weights,
    effective_weights,
    precisions_of,
    scales_in,
)
from l2c.integrations.diffusers.calls import call_of
from l2c.integrations.diffusers.guidance import check_inside, defaults_of, guidance_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.scheduler_solver import adds_noise
from l2c.integrations.dit_weights import diffusers_layer_names
from l2c.io.names import shown

log = logging.getLogger(__name__)
UNREAD = (
    "the graph was made for a guidance scale of %g, which cannot be read from this call of %s, so that another one "
    "is not noticed; keep to it, or pass any_guidance=True to have nothing said"
)
UNCOMPARED = (
    "the weights of %s have not the digest of those that the graph was made with, which may be because they are %s: "
    "that others are in use is not noticed; pass any_weights=True to have nothing said"
)
UNREADABLE = "the weights of %s were not compared with those that the graph was made with: %s"
TOLERANCE = 1e-5  # of the largest timestep: schedulers round in 32 bits
FLOW_TOLERANCE = 4e-3  # of a timestep of flow matching, which some pipelines round to 16 bits


def fitted_to(graph: CacheGraph, model: nn.Module) -> CacheGraph:
    """Return the graph under the model's own layer names.

    Raises:
        ValueError: if the model is of another architecture.

    """
    name = class_name(model)
    # Earlier versions wrote it. It stays in a graph that is read, whose correction is known by the names as written.
    plain = tuple(map(without_wrapper, graph.layers))
    layers = diffusers_layer_names(plain, model)
    known = all(_has(model, layer) for layer in own_layers(layers))
    if not known:
        raise wrong_layers(graph.binding, name, _found_layers(model))
    if layers == plain and graph.model != name:
        raise ValueError(
            f"the graph was made for {shown(graph.model)}, but the model is {shown(name)}, though it has such "
            "layers; take a graph of this model, or say that it is one by graph.replace(model=...)"
        )
    graph = graph.replace(layers=layers)
    unlisted = _same_kind(graph, model)
    if unlisted:
        raise ValueError(
            f"the graph was made for {graph.model} with {graph.num_layers} layers, but {name} has "
            f"{len(unlisted)} more of their kind ({unlisted[0]}, ...); take a graph of this model"
        )
    return graph


class WeightsCheck:
    """Refuses weights that are not a graph's; adapters (LoRA) at work count as weights.

    Made where the graph is applied, and called where the weights have changed since. Rounded weights have another
    digest: those of another precision than the graph's are refused only in one in which they were the graph's before.
    Else a warning says that they were not compared, once for each precision.

    Args:
        graph: the graph; one that is bound to no weights accepts any.
        any_adapters: look at the weights without adapters alone.

    """

    def __init__(self, graph: CacheGraph, *, any_adapters: bool = False) -> None:
        self._graph, self._any_adapters = graph, any_adapters
        self._equal_in: list[set[torch.dtype]] = []
        self._uncompared_in: list[set[torch.dtype]] = []

    def __call__(self, model: nn.Module) -> None:
        """Compare a model's weights with the graph's.

        Raises:
            ValueError: if they differ, or cannot be read, in the graph's precision or one in which they were equal.

        """
        now = precisions_of(model)
        if now in self._uncompared_in:
            return  # no digest of rounded weights says more than the first one
        made_in = self._graph.provenance.get("dtype", "torch.float32")
        sure = now in self._equal_in or {made_in} == set(map(str, now))
        name, weights = class_name(model), base_weights if self._any_adapters else effective_weights
        try:
            found = "" if self._graph.fingerprint is None else known_digest(model, weights(model))
        except ValueError as error:
            if sure:
                raise
            log.warning(UNREADABLE, name, error)
            self._uncompared_in.append(now)
            return
        try:
            check_weights(self._graph.binding, (name, name), lambda: found)
        except ValueError as error:
            if sure:
                raise _told_by_adapters(error, model, any_adapters=self._any_adapters) from error
            log.warning(UNCOMPARED, name, " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in now)))
            self._uncompared_in.append(now)
            return
        self._equal_in.append(now)


def _told_by_adapters(error: ValueError, model: nn.Module, *, any_adapters: bool) -> ValueError:
    """Return the error of weights that are not the graph's, or one that names the adapters or fusion behind it."""
    name, adapters = class_name(model), at_work(model)
    if not adapters and any(getattr(module, "fused_projections", False) for module in model.modules()):
        return ValueError(
            f"projections of queries, keys and values are fused in {name} (fuse_qkv_projections), which adds "
            "weights that the graph was made without; leave them apart in a model that is loaded anew, as "
            "unfuse_qkv_projections() keeps them in some, or pass any_weights=True to use it all the same"
        )
    fused = [adapter for adapter, how in adapters.items() if how == FUSED]
    if not adapters or (any_adapters and not fused):
        return error
    found = ", ".join(f"{shown(adapter)} {how}" for adapter, how in adapters.items())
    if any_adapters:
        return ValueError(
            f"the graph holds for the weights of {name} under any adapters (LoRA), but some are fused into them "
            f"({found}); load the plain weights anew, which unfuse_lora() gives back with rounding, or pass "
            "any_weights=True to use it all the same"
        )
    mend, allow = "load the plain weights anew", "any_weights=True to use it all the same"
    if not fused:
        mend = "call pipe.unload_ip_adapter()" if set(adapters) == {PICTURES} else "call pipe.disable_lora()"
        allow = "any_adapters=True to use it for this base model with any adapters"
    return ValueError(
        f"the graph was made with other adapters (LoRA), or none, than are at work in {name} now ({found}); "
        f"{mend}, make a graph with them, or pass {allow}"
    )


def scale_beside(graph: CacheGraph, given: Mapping[str, Any]) -> float:
    """Return by how much the arguments of a forward scale all adapters more than those the graph was made with."""
    made = {name: scale for name, scale in graph.guidance_options.items() if name.endswith(SCALE)}
    now, before = next(iter(scales_in(given).values()), 1.0), next(iter(made.values()), 1.0)
    return 1.0 if now == before else now / before if before else now


def check_scheduler(graph: CacheGraph, scheduler: Any, or_else: str) -> None:
    """Refuse a scheduler of another kind than the graph's.

    Args:
        graph: the graph.
        scheduler: the scheduler.
        or_else: what else mends it, words for the message, see `FinishedRows`.

    Raises:
        ValueError: if it is of another kind.

    """
    made_for = SCHEDULERS.get(graph.solver, graph.solver)
    mend = f"set pipe.scheduler = {made_for}.from_config(pipe.scheduler.config), {or_else}"
    check_solver(graph.binding, type(scheduler).__name__, mend=mend)


def check_timesteps(graph: CacheGraph, timesteps: Sequence[float], or_else: str) -> None:
    """Refuse other timesteps than the graph's, in the units of the model.

    Args:
        graph: the graph.
        timesteps: t of each evaluation.
        or_else: see `check_scheduler`.

    Raises:
        ValueError: if their number or one of them differs.

    """
    mend = f"call the pipeline with the graph's number of steps, {or_else}"
    check_num_evaluations(graph.binding, len(timesteps), mend=mend)
    largest = max(map(abs, graph.timesteps))
    flow = FLOW_TOLERANCE if largest <= 1 else 0.0
    mend = f"give the scheduler the graph's settings (timestep_spacing, shift, ...), {or_else}"
    check_times(graph.binding, timesteps, lambda t: max(TOLERANCE * largest, flow * abs(t)), mend=mend)


def check_call(graph: CacheGraph, pipe: Any, *, any_guidance: bool = False) -> None:
    """Refuse steps or guidance of the pipeline's running call that are not the graph's.

    Guidance scale and eta are read from the call's arguments. Where a graph has a scale and a call does not tell it
    (outside of `__call__`, a modular pipeline), a warning says so.

    Args:
        graph: the graph.
        pipe: the pipeline.
        any_guidance: accept another guidance scale.

    Raises:
        ValueError: if the guidance scale differs, noise is added to trajectories that the graph extrapolates, or the
            pipeline reads what reused layers do not compute.

    """
    call = call_of(pipe)
    given = {} if call is None else dict(call.f_locals)
    if graph.num_reused:
        check_inside(pipe, given)
    guidance = guidance_of(pipe)
    if guidance.argument in given or guidance.guider is not None:
        mend = f"call the pipeline with {guidance.argument}={graph.cfg_scale}"
        mend = mend if guidance.guider is None else f"set pipe.guider.guidance_scale = {graph.cfg_scale}"
        mend += " and a negative_prompt" if guidance.on and graph.cfg_scale != 1 else ""
        check_guidance(graph.binding, None, guidance.scale_of(given), any_guidance=any_guidance, mend=mend)
    elif graph.cfg_scale is not None and not any_guidance and (call is None or _takes_anything(pipe)):
        log.warning(UNREAD, graph.cfg_scale, type(pipe).__name__)
    if call is not None:
        check_guidance_options(
            graph.binding,
            {name: value for name, value in guidance.options_of(pipe, given).items() if not name.endswith(SCALE)},
            usual={**defaults_of(pipe), **guidance.off},
            any_guidance=any_guidance,
            mend="call the pipeline with" if guidance.guider is None else "let pipe.guider have",
        )
    check_noise(graph, draws=adds_noise(pipe.scheduler, eta=given.get("eta") or 0.0))


def _takes_anything(pipe: Any) -> bool:
    """Return whether a pipeline's call names only some of its arguments, as those of modular pipelines do."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(pipe.__call__).parameters.values())


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name.partition("@")[0])  # `ff@2` is the second call of `ff`
    except AttributeError:
        return False
    return True


def _same_kind(graph: CacheGraph, model: nn.Module) -> list[str]:
    """Return the layers that a model has beyond the graph's, in lists of blocks that the graph names.

    Layers of blocks that the graph names, and blocks before these, may run on the prompt alone.
    """
    layers = own_layers(graph.layers)
    if not layers:
        return []
    blocks = {block_of(name) for name in layers}
    places: dict[tuple[str, ...], list[list[int]]] = {}
    for name in layers:
        places.setdefault(_shape_of(name), []).append(_numbers_in(name))
    of = {"layer"} if any(not name.rpartition(".")[2].isdigit() for name in layers) else {"block"}

    def before(name: str) -> bool:
        numbers = _numbers_in(name)
        return len(numbers) == 1 and numbers < min(places[_shape_of(name)])

    found = (name for name in _found_layers(model, of) if _shape_of(name) in places and block_of(name) not in blocks)
    return [name for name in found if not before(name)]


def _found_layers(model: nn.Module, of: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return the layers that are found in a model, none where they are not known by their structure."""
    try:
        return find_layers(model, of=None if of is None else tuple(of))
    except ValueError:
        return ()


def _numbers_in(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdigit()]


def _shape_of(name: str) -> tuple[str, ...]:
    return tuple("*" if part.isdigit() else part for part in name.split("."))
