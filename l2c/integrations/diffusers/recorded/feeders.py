"""Modules that a pipeline runs before its model at every step, from the same noisy input: ControlNets.

What they hand to the model differs from step to step, so that they are run again, not their outputs recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from l2c.io.tensors import leaves_of

Path = tuple[Any, ...]  # of a tensor inside mappings and lists
Look = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@contextlib.contextmanager
def looked_at(pipe: Any, models: Collection[nn.Module], look: Look) -> Iterator[None]:
    """Call `look` with each forward of a pipeline's modules beside some and its output, in a `with` block."""
    others = [part for part in pipe.components.values() if isinstance(part, nn.Module) and part not in models]
    hooks = [part.register_forward_hook(look, with_kwargs=True) for part in others]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def handed_on(output: Any, conditions: Mapping[str, Any]) -> dict[Path, Path]:
    """Return where in a model's conditions the tensors of a module's output lie, as they are: path to path."""
    made = {id(tensor): path for path, tensor in leaves_of(output)}
    return {path: made[id(tensor)] for path, tensor in leaves_of(conditions) if id(tensor) in made}


def filled(value: Any, tensors: Mapping[Path, Any], path: Path = ()) -> Any:
    """Return a copy of nested mappings and lists with other members at some paths."""
    if path in tensors:
        return tensors[path]
    if isinstance(value, Mapping):
        return {key: filled(member, tensors, (*path, key)) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(filled(member, tensors, (*path, place)) for place, member in enumerate(value))
    return value


def member_of(value: Any, path: Sequence[Any]) -> Any:
    """Return the member of nested mappings and lists at a path."""
    for key in path:
        value = value[key]
    return value
