"""Whole blocks taken for branches: layers whose output holds their input, found by the gradients of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from l2c.backbones.forwards import replaced
from l2c.backbones.layer_form import OutputForm, opened
from l2c.backbones.wrap import WrappedLayer
from l2c.io.names import listed

# Of gradients: what hands a sum on as it is. `addcmul` is a sum whose first term is handed on.
HANDED_ON = re.compile(r"(Add|Addcmul|View|UnsafeView|ReshapeAlias|Transpose|Permute|Clone|ToCopy)Backward0")
ACCUMULATE = "torch::autograd::AccumulateGrad"


@contextmanager
def whole_blocks(layers: Sequence[WrappedLayer]) -> Iterator[list[str]]:
    """Collect the names of layers whose forwards return `input + ...`, in a `with` block in which the model runs.

    Layers are looked at whose output is taken for a branch; those that cannot be differentiated are left out.
    """
    found: list[str] = []
    looked_at = {layer.module: layer.name for layer in layers if type(layer.form) is OutputForm}
    with replaced({module: partial(_look, found, name) for module, name in looked_at.items()}):
        yield found


def sentence(found: Sequence[str], count: int, model: str) -> str:
    """Return what is wrong with whole blocks that are taken for branches, and how to mend it."""
    patterns = list(dict.fromkeys(re.sub(r"\d+", "*", name) for name in found))
    return (
        f"{len(found)} of the {count} layers of {model} return their input plus what they add to it, as "
        f"whole blocks do: {listed(found, 2)}; reused as it is, such an output puts an old stream in the place of "
        f"the new one, so name them in residual= too, residual={patterns}"
    )


def _look(found: list[str], name: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        output, adds = _traced(forward, args, kwargs)
    except RuntimeError:  # no gradients pass, or out of memory for them
        return forward(*args, **kwargs)
    if adds and name not in found:
        found.append(name)
    return output


def _traced(forward: Any, args: Any, kwargs: Any) -> tuple[Any, bool]:
    """Return the output of a forward, and whether it is a sum with one of its inputs."""
    given, tree = tree_flatten((args, kwargs))
    leaves = {
        id(value): value.detach().requires_grad_()
        for value in given
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    with torch.enable_grad():
        args, kwargs = tree_unflatten([leaves[id(v)].clone() if id(v) in leaves else v for v in given], tree)
        output = forward(*args, **kwargs)
    members = opened(output)
    tensors = [value for value in (members[0] if members else [output]) if isinstance(value, Tensor)]
    adds = any(
        _is_sum_with(value, [leaf for leaf in leaves.values() if leaf.shape == value.shape]) for value in tensors
    )
    return tree_map_only(Tensor, Tensor.detach, output), adds


def _is_sum_with(output: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return whether an output is a sum with one of some leaves among its terms."""
    nodes: list[tuple[Any, bool]] = [(output.grad_fn, False)]  # and whether a sum lies between it and the output
    while nodes:
        node, summed = nodes.pop()
        name = "" if node is None else node.name()
        if name == ACCUMULATE:
            if summed and any(node.variable is leaf for leaf in leaves):
                return True
        elif HANDED_ON.fullmatch(name):
            terms = [term for term, _ in node.next_functions]
            adds = name.startswith("Add")
            nodes += [(term, summed or adds) for term in (terms[:1] if name.startswith("Addcmul") else terms)]
    return False
