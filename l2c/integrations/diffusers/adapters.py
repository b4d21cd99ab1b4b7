"""Adapters in a model (LoRA and its like, as the package peft puts them in; IP-Adapters), and weights that count.

A layer with adapters holds the plain one as `base_layer` (`original_module` where it is trained whole), says which
are active, merged (fused) or all disabled, and holds what each adds in containers with a part for each name; kinds
that can be scaled (LoRA, LoHa, LoKr) say by how much. Nothing else of peft is needed here. An IP-Adapter is a scaled
processor in each attention, and a projection of what a picture was encoded to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.digest import shared, some_values, written

FUSED = "fused"
PICTURES = "IP-Adapter"
ATTENTION, SCALE = "attention_kwargs", ".scale"  # arguments for attention layers; what a scale in one is named
PLAIN = ("base_layer", "original_module")  # names of the plain layer in one with adapters


def _plain_in(module: nn.Module) -> str | None:
    """Return the name under which a layer with adapters holds the plain one, None for other modules."""
    own: Any = module
    found = next((name for name in PLAIN if name in own._modules), None)
    return found if hasattr(own, "active_adapters") else None


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is a layer with adapters around a plain one."""
    return _plain_in(module) is not None


def bare(module: nn.Module) -> Any:
    """Return a layer without its adapters."""
    plain = _plain_in(module)
    return module if plain is None else module.get_submodule(plain)


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
        found |= {name: f"at {_scale(layer, name):g}" for name in _active(layer)}
        found |= dict.fromkeys(layer.merged_adapters, FUSED)
    scales = dict.fromkeys(scale for _, scale in _of_pictures(model) if scale)
    return {**found, PICTURES: f"at {', '.join(scales)}"} if scales else found


def effective_weights(model: nn.Module) -> dict[str, Any]:
    """Return the weights that count: the state dict under plain names, with adapters only where they are at work."""
    return weights_under(model, keep_active=True)


def base_weights(model: nn.Module) -> dict[str, Any]:
    """Return the state dict without adapters, under plain names; what was fused into it stays."""
    return weights_under(model, keep_active=False)


def precisions_of(model: nn.Module) -> set[torch.dtype]:
    """Return the types of a model's own parameters, those of adapters aside."""
    own = base_weights(model).keys()
    return {weight.dtype for name, weight in model.named_parameters() if _plain_name(name) in own}


def weights_under(model: nn.Module, *, keep_active: bool) -> dict[str, Any]:
    """Return the state dict under plain names, with the adapters that are at work or without.

    Adapters are numbered by their names' order, so that one which is loaded under another name counts as the same.
    """
    weights = _readable(model)
    layers = _adapted(model)
    number = {
        name: place for place, name in enumerate(sorted({name for _, layer in layers for name in _active(layer)}))
    }
    for name, layer in reversed(layers):  # layers inside others first
        active, plain = _active(layer) if keep_active else [], f"{_plain_in(layer)}."
        start = f"{name}." if name else ""
        for key in [key for key in weights if key.startswith(start)]:
            inside, value = key.removeprefix(start), weights.pop(key)
            if inside.startswith(plain):
                weights[start + inside.removeprefix(plain)] = value
            elif any(part in active for part in inside.split(".")):
                weights[start + ".".join(str(number.get(part, part)) for part in inside.split("."))] = value
        for adapter in active:
            weights[f"{start}scale.{number[adapter]}"] = torch.tensor(_scale(layer, adapter))
            for what, value in _passing(layer, adapter):
                weights[f"{start}{what}.{number[adapter]}"] = value
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
    own = {key for part in layer.children() if hasattr(part, "keys") for key in part.keys()}  # noqa: SIM118
    return [] if off else [name for name in layer.active_adapters if name in own]


def _scale(layer: Any, adapter: str) -> float:
    """Return by how much a layer scales what an adapter adds; 1 of kinds that have no scale."""
    scales = getattr(layer, "scaling", None)  # a module that is trained whole may have another thing of this name
    return float(scales.get(adapter, 1.0)) if isinstance(scales, dict) else 1.0


def scales_in(call: Mapping[str, Any]) -> dict[str, float]:
    """Return the scales of all adapters that the arguments of a call, or of a forward, give; none where it is 1.

    They are in a dictionary for the attention layers (`joint_attention_kwargs={"scale": 0.5}`), and named after it.
    """
    held = {name: value for name, value in call.items() if name.endswith(ATTENTION) and isinstance(value, Mapping)}
    found = {f"{name}{SCALE}": float(value.get("scale", 1.0)) for name, value in held.items()}
    return {name: scale for name, scale in found.items() if scale != 1}


@contextmanager
def scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Let adapters be scaled as in a forward with a scale for all of them, for the time of a `with` block."""
    adapted = [] if factor == 1 else [layer for _, layer in _adapted(model)]
    layers = [layer for layer in adapted if isinstance(getattr(layer, "scaling", None), dict)]
    before = [dict(layer.scaling) for layer in layers]
    for layer, scales in zip(layers, before, strict=True):
        layer.scaling.update({name: factor * scale for name, scale in scales.items()})
    try:
        yield
    finally:
        for layer, scales in zip(layers, before, strict=True):
            layer.scaling.update(scales)


def _passing(layer: Any, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yield by name what no state dict has of an adapter: the frequencies that it holds (FourierFT), their scale."""
    for name in getattr(layer, "other_param_names", ()):
        held = getattr(layer, name, None)
        value = held.get(adapter) if isinstance(held, dict) else None
        if isinstance(value, Tensor) or (value is not None and name.endswith("_scaling")):
            yield name, torch.as_tensor(value)


def facts_under_adapters(model: nn.Module) -> dict[Any, Any]:
    """Return how layers are adapted, weights' names, precision, how often each was written in place, some values.

    The values tell of what leaves torch's counters as they are: an adapter is fused through `.data`.
    """
    layers = [(name, layer, _active(layer), list(layer.merged_adapters)) for name, layer in _adapted(model)]
    adapters = [
        (name, {adapter: _scale(layer, adapter) for adapter in active}, merged)
        for name, layer, active, merged in layers
        if active or merged
    ]
    names = dict(model.named_parameters())
    weights = {_plain_name(name): weight for name, weight in names.items()}
    precision = {weight.dtype for weight in weights.values()}  # weights that come back from 16 bits are rounded
    pictures = _of_pictures(model)
    facts: dict[Any, Any] = {"adapters at work": (adapters, pictures), "precision": precision}
    if shared(weights.values()):
        return facts
    added = tuple(f"{name}." for name, *_ in (*layers, *pictures))
    plain = {_plain_name(n) for n in names if _plain_name(n) != n or not n.startswith(added)}
    return {**facts, "names": plain, **written(weights.values()), **some_values(weights.items())}


def _plain_name(name: str) -> str:
    """Return the name of a weight without the part that a layer with adapters puts between."""
    return ".".join(part for part in name.split(".") if part not in PLAIN)
