"""The models of a pipeline that are called at every step, one or two that share a trajectory."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import nn

from l2c.backbones.forwards import INSIDE_COMPILED, eagerly
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


@contextmanager
def modes_kept(pipe: Any) -> Iterator[None]:
    """Let a pipeline's networks train or infer, and weights have gradients, as before, after a `with` block."""
    networks = [network for network in vars(pipe).values() if isinstance(network, nn.Module)]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    gradients = [(weight, weight.requires_grad) for network in networks for weight in network.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, needed in gradients:
            if weight.requires_grad != needed:  # whole numbers of quantised weights have none to set
                weight.requires_grad_(needed)


def denoisers_of(pipe_or_model: Any) -> dict[str, nn.Module]:
    """Return the transformers and U-Nets of a pipeline by their names there; a model is its own, named `model`.

    They are the models themselves, without what is around them, see `unwrapped`.

    Raises:
        ValueError: if there is no denoiser, or one runs as copies on several devices.

    """
    alone = isinstance(pipe_or_model, nn.Module)
    models = {"model": unwrapped(pipe_or_model)} if alone else denoisers_in(pipe_or_model)
    for name in models:
        copies = getattr(pipe_or_model if alone else part_of(pipe_or_model, name), "device_ids", None) or ()
        if len(copies) > 1:
            raise ValueError(
                f"the {name} runs as copies on {len(copies)} devices (DataParallel), each of which would need "
                "outputs of its own to reuse; take the model inside (.module), or a pipeline for each device"
            )
    if not models:
        raise ValueError(
            f"{type(pipe_or_model).__name__} has neither a transformer nor a unet, nor another part that takes a "
            "time; give a diffusers pipeline, or the model that is called at every step"
        )
    return models


def denoisers_in(pipe: Any) -> dict[str, nn.Module]:
    """Return the denoisers of a pipeline by their names there, none of what has none.

    They are the parts that take a time, each once, but for those that steer another one (ControlNets), and those of
    another trajectory, which has a scheduler of its own (the prior of a pipeline of two stages). Members of a mapping
    or list count each, `experts.high` for one. Where there are none (forwards that do not say what they take), the
    parts of the usual names.
    """
    parts: dict[str, Any] = getattr(pipe, "__dict__", {})
    found: dict[str, nn.Module] = {}
    for name, part in _parts_of(pipe):
        model = unwrapped(part)
        if model not in found.values() and _predicts(model):
            found[name] = model
    return found or {name: unwrapped(parts[name]) for name in USUAL if isinstance(parts.get(name), nn.Module)}


def _parts_of(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a pipeline's trajectory by their names there, those of mappings and lists one by one."""
    for name, part in getattr(pipe, "__dict__", {}).items():
        if not name.startswith("_") and not of_another(pipe, name):
            yield from _members(name, part)


def _members(name: str, part: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(part, (nn.ModuleDict, nn.ModuleList, Mapping, list, tuple)):
        members: Any = part.items() if isinstance(part, (nn.ModuleDict, Mapping)) else enumerate(part)
        for key, member in members:
            yield from _members(f"{name}.{key}", member)
    elif isinstance(part, nn.Module):
        yield name, part


def part_of(pipe: Any, name: str) -> Any:
    """Return the part of a pipeline of a name as `denoisers_in` gives it, with what is around it; None without."""
    whole, _, inside = name.partition(".")
    part = getattr(pipe, whole, None)
    return dict(_members(whole, part)).get(name) if inside else part


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside of what calls it: `torch.compile(model)`, peft's `get_peft_model`, data parallels."""
    while True:
        if INSIDE_COMPILED in module._modules:
            inner = module.get_submodule(INSIDE_COMPILED)
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        elif "base_model" in module._modules and hasattr(module, "get_base_model"):
            inner = module.get_base_model()  # type: ignore[operator]
        else:
            return module
        module = inner


@contextmanager
def without_wrappers(pipe: Any) -> Iterator[None]:
    """Let a pipeline call its models themselves, nothing of them compiled, for the time of a `with` block.

    Hooks that record calls are not seen by what was compiled before.
    """
    parts: dict[str, Any] = vars(pipe)
    models = {name: unwrapped(part) for name, part in parts.items() if isinstance(part, nn.Module)}
    around = {name: parts[name] for name, model in models.items() if model is not parts[name]}
    parts |= {name: models[name] for name in around}
    try:
        with eagerly():
            yield
    finally:
        parts |= around


def of_another(pipe: Any, name: str) -> bool:
    """Return whether a part or argument of a pipeline is by its name of a trajectory with a scheduler of its own."""
    others = (part.removesuffix(SCHEDULER) for part in getattr(pipe, "__dict__", {}) if part.endswith(SCHEDULER))
    return any(f"{name}_".startswith(f"{other}_") for other in others)


def check_apart(layers: Mapping[str, Iterable[nn.Module]], networks: Mapping[str, nn.Module]) -> None:
    """Refuse layers of a network that are modules of another one of the pipeline too.

    Args:
        layers: the modules of the layers of networks, by the networks' names.
        networks: all networks that run at each step, by their names.

    Raises:
        ValueError: if there is such a layer.

    """
    for name, modules in layers.items():
        of_others = {part: other for other in networks if other != name for part in networks[other].modules()}
        for module in modules:
            if module in of_others:
                raise ValueError(
                    f"{name} and {of_others[module]} share a {type(module).__name__}, whose outputs in one would be "
                    "reused in the other; give each a copy (copy.deepcopy), or take graphs of the whole output "
                    "(layers='output')"
                )


def _predicts(part: nn.Module) -> bool:
    """Return whether a network takes a time and returns a prediction, not what steers another network."""
    kind: Any = type(part)
    names = parameters_of(kind)
    return any(map(is_time, names)) and (STRENGTH not in names or is_unet(part))


def denoiser_of(pipe_or_model: Any) -> Any:
    """Return the one denoiser of a pipeline, the first of two; a model is its own.

    Raises:
        ValueError: if there is no denoiser.

    """
    return next(iter(denoisers_of(pipe_or_model).values()))
