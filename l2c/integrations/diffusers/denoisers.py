"""The models of a pipeline that are called at every step, one or two that share a trajectory."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from l2c.integrations.diffusers.layers import is_unet

USUAL = ("transformer", "unet")
STRENGTH = "conditioning_scale"  # argument of networks that steer another one (ControlNets)
SCHEDULER = "_scheduler"  # ends the name of the scheduler of another trajectory: `prior_scheduler` is for `prior`
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
    """Return whether an argument of this name is the timestep: `timestep`, `t`, `vision_timesteps`, `bb_ca_time`."""
    ends = str(name).endswith(("_timestep", "_timesteps", "_time"))
    return name in TIMES or (ends and not str(name).startswith("r_"))


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

    They are the parts that take a time, each once, but for those that steer another one (ControlNets), and those of
    another trajectory, which has a scheduler of its own (the prior of a pipeline of two stages). Where there are none
    (forwards that do not say what they take), the parts of the usual names.
    """
    parts: dict[str, Any] = getattr(pipe, "__dict__", {})
    others = tuple(name.removesuffix(SCHEDULER) for name in parts if name.endswith(SCHEDULER))
    found: dict[str, nn.Module] = {}
    for name, part in parts.items():
        elsewhere = name.startswith("_") or any(f"{name}_".startswith(f"{other}_") for other in others)
        if isinstance(part, nn.Module) and not elsewhere and part not in found.values() and _predicts(part):
            found[name] = part
    return found or {name: parts[name] for name in USUAL if isinstance(parts.get(name), nn.Module)}


def _predicts(part: nn.Module) -> bool:
    """Return whether a network takes a time and returns a prediction, not what steers another network."""
    model: Any = unwrap_module(part)
    kind: Any = type(model)
    names = parameters_of(kind)
    return any(map(is_time, names)) and (STRENGTH not in names or is_unet(model))


def denoiser_of(pipe_or_model: Any) -> Any:
    """Return the one denoiser of a pipeline, the first of two; a model is its own.

    Raises:
        ValueError: if there is no denoiser.

    """
    return next(iter(denoisers_of(pipe_or_model).values()))
