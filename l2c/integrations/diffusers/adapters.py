"""Adapters in a model (LoRA and its like, as the package peft puts them in; IP-Adapters), and weights that count.

A layer with adapters holds the plain one as `base_layer`, says which are active, merged (fused) or all disabled, and
how much each is scaled. Nothing else of peft is needed here. An IP-Adapter is a scaled processor in each attention,
and a projection of what a picture was encoded to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.digest import shared, some_values, written

FUSED = "fused"
PICTURES = "IP-Adapter"


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is a layer with adapters around a plain one."""
    return "base_layer" in dict(module.named_children()) and hasattr(module, "active_adapters")


def bare(module: nn.Module) -> Any:
    """Return a layer without its adapters."""
    return module.get_submodule("base_layer") if is_adapted(module) else module


def plain_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all inside it, adapters left out."""
    module = bare(module)
    yield module
    for child in module.children():
        yield from plain_parts(child)


def at_work(model: nn.Module) -> dict[str, str]:
    """Return the active adapters by name, each with its scale, or that it is fused, in words."""
    found: dict[str, str] = {}
    for _, layer in _adapted(model):
        found |= {name: f"at {layer.scaling.get(name, 1.0):g}" for name in _active(layer)}
        found |= dict.fromkeys(layer.merged_adapters, FUSED)
    scales = dict.fromkeys(scale for _, scale in _of_pictures(model) if scale)
    return {**found, PICTURES: f"at {', '.join(scales)}"} if scales else found


def effective_weights(model: nn.Module) -> dict[str, Any]:
    """Return the weights that count: the state dict under plain names, with adapters only where they are at work."""
    return weights_under(model, keep_active=True)


def base_weights(model: nn.Module) -> dict[str, Any]:
    """Return the state dict without adapters, under plain names; what was fused into it stays."""
    return weights_under(model, keep_active=False)


def weights_under(model: nn.Module, *, keep_active: bool) -> dict[str, Any]:
    """Return the state dict under plain names, with the adapters that are at work or without.

    Adapters are numbered by their names' order, so that one which is loaded under another name counts as the same.
    """
    weights = _readable(model)
    layers = _adapted(model)
    number = {
        name: place for place, name in enumerate(sorted({name for _, layer in layers for name in _active(layer)}))
    }
    for name, layer in layers:
        active = _active(layer) if keep_active else []
        start = f"{name}." if name else ""
        for key in [key for key in weights if key.startswith(start)]:
            inside, value = key.removeprefix(start), weights.pop(key)
            if inside.startswith("base_layer."):
                weights[start + inside.removeprefix("base_layer.")] = value
            elif any(part in active for part in inside.split(".")):
                weights[start + ".".join(str(number.get(part, part)) for part in inside.split("."))] = value
        for adapter in active:
            weights[f"{start}scale.{number[adapter]}"] = torch.tensor(layer.scaling.get(adapter, 1.0))
    pictures = _of_pictures(model)
    off = not keep_active or not any(scale for _, scale in pictures)
    for name, scale in pictures:
        if off:
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
        elif scale:
            weights[f"{name}.scale={scale}"] = torch.empty(0)
    return weights


def _readable(model: nn.Module) -> dict[str, Any]:
    """Return the state dict, with the weights that accelerate keeps elsewhere between forwards (memory, disk)."""
    kept: dict[str, Any] = {}
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):  # several in one
            if getattr(part, "weights_map", None) is not None:
                kept[path] = part.weights_map  # type: ignore[union-attr]
    weights = dict(model.state_dict())
    for name, weight in weights.items():
        path, _, own = name.rpartition(".")
        if path in kept and isinstance(weight, Tensor) and weight.is_meta:
            weights[name] = kept[path][own]
    return weights


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if is_adapted(module)]


def _of_pictures(model: nn.Module) -> list[tuple[str, str]]:
    """Return the parts of IP-Adapters by name, each with its scales; empty where it adds nothing to an output."""
    found = []
    for name, module in model.named_modules():
        if hasattr(module, "to_k_ip"):
            scale = str(module.scale)
            found.append((name, scale if re.search("[1-9]", scale) else ""))
        elif type(module).__name__ == "MultiIPAdapterImageProjection":
            found.append((name, ""))
    return found


def _active(layer: Any) -> list[str]:
    """Return the adapters that a layer adds to its plain output; fused ones are in its weights."""
    off = layer.disable_adapters or layer.merged_adapters
    own = {key for part in layer.children() if isinstance(part, nn.ModuleDict) for key in part}
    return [] if off else [name for name in layer.active_adapters if name in own]


def facts_under_adapters(model: nn.Module) -> dict[Any, Any]:
    """Return how layers are adapted, weights' names, precision, how often each was written in place, some values.

    The values tell of what leaves torch's counters as they are: an adapter is fused through `.data`.
    """
    layers = [(name, layer, _active(layer), list(layer.merged_adapters)) for name, layer in _adapted(model)]
    adapters = [
        (name, {adapter: layer.scaling.get(adapter) for adapter in active}, merged)
        for name, layer, active, merged in layers
        if active or merged
    ]
    names = dict(model.named_parameters())
    weights = {name.replace("base_layer.", ""): weight for name, weight in names.items()}
    precision = {weight.dtype for weight in weights.values()}  # weights that come back from 16 bits are rounded
    pictures = _of_pictures(model)
    facts: dict[Any, Any] = {"adapters at work": (adapters, pictures), "precision": precision}
    if shared(weights.values()):
        return facts
    added = tuple(f"{name}." for name, *_ in (*layers, *pictures))
    plain = {n.replace("base_layer.", "") for n in names if "base_layer." in n or not n.startswith(added)}
    return {**facts, "names": plain, **written(weights.values()), **some_values(weights.items())}
