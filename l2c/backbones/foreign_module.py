"""A module of a user: the one inside wrappers, what its forward takes, and its layers, found by patterns of names."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from l2c.backbones.forwards import INSIDE_COMPILED, without_wrapper
from l2c.graph.given import each, text
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.io.names import quoted, shown
from l2c.io.numbers import whole_number


def bare(module: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`, (Distributed)DataParallel or AveragedModel; others unchanged."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"l2c.wrap takes a torch module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"l2c.wrap takes a module of Python code, got one of torch.jit ({shown(module.original_name)}), inside "
            "which nothing can be reused; wrap the module that it was made from"
        )
    while True:
        inner = getattr(module, INSIDE_COMPILED, None)
        if inner is None and isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            break
        module = inner
    if next(module.parameters(), None) is None:
        raise ValueError(
            f"{type(module).__name__} has no parameters, so nothing tells its device; wrap one with some"
        )
    return module


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return all modules inside a module by name; a compiled one has the name of the module that it compiles."""
    found: dict[str, nn.Module] = {}
    for name, inner in module.named_modules():
        found.setdefault(without_wrapper(name), inner)
    found.pop("", None)
    return found


def around(module: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the modules that hold one of some layers, the outermost first."""
    inside = set(map(id, layers))
    return [
        outer
        for outer in module.modules()
        if id(outer) not in inside and any(id(inner) in inside for inner in outer.modules())
    ]


def match_layers(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the modules that patterns match, in the module's own order.

    A pattern has as many parts as the name, separated by dots; `*` stands for any one part or a piece of it.

    Raises:
        ValueError: if a pattern matches nothing, one layer lies inside another, or one is called `output`.

    """
    patterns = [without_wrapper(text("a pattern of layers", one)) for one in each("patterns of layers", patterns)]
    modules = modules_of(module)
    names = list(modules)
    found = {pattern: [name for name in names if _matches(name, pattern)] for pattern in patterns}
    for pattern, matched in found.items():
        if not matched:
            some = dict.fromkeys(".".join("*" if p.isdigit() else p for p in name.split(".")) for name in names)
            raise ValueError(
                f"the pattern {quoted(pattern)} matches nothing in {type(module).__name__}; its modules are like "
                f"{', '.join(list(some)[:12])}"
            )
    chosen = {name for matched in found.values() for name in matched}
    if WHOLE_OUTPUT in chosen:
        raise ValueError(
            f"layer {WHOLE_OUTPUT} has the name that stands for what the whole network returns; leave it out of the "
            "patterns, or wrap a module that holds the network, net say, so that the layer is net.output"
        )
    for name in chosen:
        check_runs(name, modules[name])
    for name in chosen:
        inside = next((other for other in chosen if name.startswith(f"{other}.")), None)
        if inside is not None:
            raise ValueError(f"layer {name} lies inside layer {inside}; match one of them")
    if not chosen:
        raise ValueError("no patterns given; say layers=['blocks.*.attn', 'blocks.*.mlp'] or the like")
    return tuple(name for name in names if name in chosen)


def check_runs(name: str, module: nn.Module) -> None:
    """Refuse a layer that has no forward of its own (a list of modules): nothing of it could be kept."""
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise ValueError(
            f"layer {name} is a {type(module).__name__}, which never runs itself; name what is in it, {name}.*"
        )


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def shape_of(input_shape: Any) -> tuple[int, ...] | None:
    """Return the shape of one x, None where it is not known; refuse one without sides, or whose sides are none."""
    if input_shape is None:
        return None
    sides = tuple(whole_number("a side of input_shape", n, low=1) for n in each("input_shape", input_shape))
    if not sides:
        raise ValueError("input_shape is empty; give (C, H, W), or leave it out")
    return sides


def labels_of(labels: str | None, num_labels: int, null_label: int | None) -> tuple[int | None, int]:
    """Return the null label and the number of labels of a module; refuse numbers without labels and the reverse."""
    count = whole_number("num_labels", num_labels, low=0, high=2**31)
    null = None if null_label is None else whole_number("null_label", null_label, low=0, high=2**31)
    if labels is None and (count or null is not None):
        raise ValueError("num_labels and null_label need labels=, the parameter of the forward that takes them")
    if labels is not None and not count:
        raise ValueError("a module with labels has at least one; say num_labels= how many")
    return null, count


def check_parameters(module: nn.Module, **wanted: str | None) -> None:
    """Refuse names that a forward does not take beside its input, and a forward that needs further arguments."""
    kind, signature = type(module).__name__, inspect.signature(module.forward).parameters
    named = [p for p in signature.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    others = [parameter.name for parameter in named[1:]]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values())
    for what, parameter in wanted.items():
        known = parameter is None or text(what, parameter) in others
        if not known and (not takes_any or parameter == next(iter(signature))):
            mend = f"say {what}= one of {', '.join(others)}" if others else "it takes the noisy input alone"
            raise ValueError(f"the forward of {kind} has no parameter {quoted(parameter)} beside its input; {mend}")
    needed = [p.name for p in named[1:] if p.default is p.empty and p.name not in wanted.values()]
    if needed:
        raise ValueError(
            f"the forward of {kind} also needs {', '.join(needed)}, which a backbone is not given; wrap a module "
            "around it that fills them in, whose forward takes the noisy input, the time and at most labels"
        )
