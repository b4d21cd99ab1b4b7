"""The models of a pipeline that are called at every step, one or two that share a trajectory; the graph of each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from l2c.backbones.digest import known_digest
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers.adapters import effective_weights

NAMES = ("transformer", "transformer_2", "unet", "unet_2")
TIMES = ("timestep", "timesteps", "t", "timestep_ratio")


@lru_cache(maxsize=64)
def parameters_of(kind: Any) -> tuple[str, ...]:
    """Return the names of a class's positional parameters, in their order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


@lru_cache(maxsize=64)
def needed_by(kind: Any) -> frozenset[str]:
    """Return the names of the arguments that a class's forward has no default for."""
    parameters = inspect.signature(kind.forward).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.default is parameter.empty)


def is_time(name: str) -> bool:
    """Return whether an argument of this name is the timestep: `timestep`, `t`, `vision_timesteps`."""
    return name in TIMES or (str(name).endswith(("_timestep", "_timesteps")) and not str(name).startswith("r_"))


def denoisers_of(pipe_or_model: Any) -> dict[str, nn.Module]:
    """Return the transformers and U-Nets of a pipeline by their names there; a model is its own, named `model`.

    Raises:
        ValueError: if there is no denoiser.

    """
    if isinstance(pipe_or_model, nn.Module):
        return {"model": pipe_or_model}
    models = denoisers_in(pipe_or_model)
    if not models:
        raise ValueError(
            f"{type(pipe_or_model).__name__} has neither a transformer nor a unet, nor another part that takes a "
            "time; give a diffusers pipeline, or the model that is called at every step"
        )
    return models


def denoisers_in(pipe: Any) -> dict[str, nn.Module]:
    """Return the denoisers of a pipeline by their names there, none of what has none.

    Where none has a usual name, they are the components that take a time (those of Stable Cascade).
    """
    named = {name: getattr(pipe, name, None) for name in NAMES}
    found = {name: model for name, model in named.items() if isinstance(model, nn.Module)}
    if found or not isinstance(getattr(pipe, "components", None), Mapping):
        return found
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    kinds: dict[str, Any] = {name: type(unwrap_module(part)) for name, part in parts.items()}
    return {name: parts[name] for name, kind in kinds.items() if any(map(is_time, parameters_of(kind)))}


def denoiser_of(pipe_or_model: Any) -> Any:
    """Return the one denoiser of a pipeline, the first of two; a model is its own.

    Raises:
        ValueError: if there is no denoiser.

    """
    return next(iter(denoisers_of(pipe_or_model).values()))


def second_of(pipe: Any, timesteps: Sequence[float]) -> tuple[nn.Module, float] | None:
    """Return a pipeline's second denoiser and the t below which it is called; None where there is one alone.

    Args:
        pipe: the pipeline.
        timesteps: of a trajectory, as its models are given them.

    Raises:
        ValueError: if there are two, but no boundary between their times.

    """
    models = list(denoisers_of(pipe).values())
    if len(models) == 1:
        return None
    ratio = getattr(pipe.config, "boundary_ratio", None)
    if ratio is None:
        raise ValueError(
            f"{type(pipe).__name__} has two denoisers but no boundary_ratio, so that the time of each is not known; "
            "calibrate each on a pipeline of its own"
        )
    training = float(pipe.scheduler.config.num_train_timesteps)
    return models[1], ratio * (training if max(timesteps) > 1 else 1.0)


def graphs_of(graph: CacheGraph, pipe: Any) -> CacheGraph | CacheGraphs:
    """Return a graph of a whole trajectory as the pipeline needs it: for two denoisers, the part of each.

    The second one's first evaluation computes everything.
    """
    models = denoisers_of(pipe)
    if len(models) == 1:
        return graph
    boundary = second_of(pipe, graph.timesteps)
    assert boundary is not None
    first, second = models
    start = sum(t >= boundary[1] for t in graph.timesteps)
    parts: dict[str, CacheGraph] = {}
    for name, part in ((first, slice(0, start)), (second, slice(start, None))):
        chosen = range(graph.num_evaluations)[part]
        if not chosen:
            raise ValueError(f"{type(pipe).__name__} calls its {name} at none of {len(graph.rows)} steps; take more")
        model = models[name]
        digest = graph.fingerprint if name == first else known_digest(model, effective_weights(model))
        parts[name] = with_evaluations(graph, chosen, fingerprint=digest)
    return CacheGraphs(parts)
