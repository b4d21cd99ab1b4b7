"""Extracts a layer's output from a module's output, and puts a reused one back.

The modules of other packages return a branch's output before its gate (`OUTPUT`: attention, feed-forward), or a whole
block with its input already added (`RESIDUAL`). What is kept is the branch alone: a tensor, or a tuple of them for
modules that work on several streams of tokens (image and text, video and sound).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten  # diffusers registers its outputs there

from l2c.graph import predictor

Branch: TypeAlias = "Tensor | tuple[Tensor | None, ...]"
Shapes: TypeAlias = "tuple[tuple[int, ...] | None, ...]"


def over(function: Callable[..., Tensor], *branches: Branch) -> Branch:
    """Apply a function of tensors to branches alike, stream by stream."""
    if isinstance(branches[0], Tensor):
        return function(*branches)
    return tuple(None if streams[0] is None else function(*streams) for streams in zip(*branches, strict=True))


def ahead(last: Branch, before: Branch, slope: float) -> Branch:
    """Return `last + slope (last - before)`."""
    return over(lambda new, old: predictor.ahead(new, old, slope), last, before)


def shapes_of(branch: Branch) -> Shapes:
    """Return the shape of each stream, None where a stream is absent."""
    streams = (branch,) if isinstance(branch, Tensor) else branch
    return tuple(None if stream is None else tuple(stream.shape) for stream in streams)


def joined(branch: Branch) -> Tensor:
    """Return a branch as one tensor: streams (N, T_i, D) one after the other, (N, T, D); others flat, (N, M)."""
    if isinstance(branch, Tensor):
        return branch
    streams = [stream for stream in branch if stream is not None]
    if len(streams) == 1 or _alike(shapes_of(tuple(streams))):
        return torch.cat(streams, dim=1)
    same_batch = len({len(stream) for stream in streams}) == 1
    return torch.cat([stream.flatten(1) if same_batch else stream.reshape(1, -1) for stream in streams], dim=1)


def split(whole: Tensor, shapes: Shapes) -> tuple[Tensor | None, ...]:
    """Return the streams of a joined branch; the batch may have changed since `shapes_of` was asked."""
    present = [shape for shape in shapes if shape is not None]
    if len(present) == 1 or _alike(present):
        parts = iter(whole.split([shape[1] for shape in present], dim=1))
        return tuple(None if shape is None else next(parts) for shape in shapes)
    same_batch = len({shape[0] for shape in present}) == 1
    sizes = [torch.Size(shape[1:] if same_batch else shape).numel() for shape in present]
    flat = iter(whole.split(sizes, dim=1))
    return tuple(
        None if shape is None else next(flat).reshape((len(whole), *shape[1:]) if same_batch else shape)
        for shape in shapes
    )


def _alike(shapes: Sequence[Any]) -> bool:
    """Return whether streams are tokens (N, T_i, D) of one batch and one width."""
    return all(len(shape) == 3 for shape in shapes) and len({(shape[0], shape[2]) for shape in shapes}) == 1


class LayerForm(Protocol):
    """A way to read a layer out of a module's output and to write it back."""

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return the layer's output, taken from the module's output for these arguments."""

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return the module's output for a given output of its layer."""


class OutputForm:
    """The module's output is the layer's.

    Tensors and tuples of them (a missing stream is None) are taken as they are. What else its module returned when it
    last computed (the class of an output object, members that are no tensors) is remembered; a form is of one module.
    """

    def __init__(self) -> None:
        self._others: tuple[Callable[[list[Any]], Any], tuple[Any, ...]] | None = None

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return the tensors of the output.

        Raises:
            ValueError: if the output has no members.

        """
        if isinstance(output, Tensor):
            return output
        found = opened(output)
        if found is None:
            raise ValueError(
                f"a layer must return a tensor, or a tuple, list, dict, named tuple or dataclass of them, but "
                f"{type(module).__name__} returns {type(output).__name__}; leave it out of the patterns given to "
                "l2c.wrap, or take the modules inside it"
            )
        members, build = found
        rest = tuple(None if isinstance(member, Tensor) else member for member in members)
        if type(output) is not tuple or any(member is not None for member in rest):
            self._others = build, rest
        return tuple(member if isinstance(member, Tensor) else None for member in members)

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return the branch as the module returns its output."""
        if isinstance(branch, Tensor) or self._others is None:
            return branch
        build, rest = self._others
        return build([other if stream is None else stream for stream, other in zip(branch, rest, strict=True)])


class WholeOutputForm:
    """The output of a whole model: tensors in lists, tuples or output objects of any depth.

    Tensors are kept and handed out as copies, because a pipeline may change what its model returned. What else is in
    the output is that of the last computed one.
    """

    def __init__(self) -> None:
        self._rest: list[Any] = []
        self._tree: TreeSpec | None = None

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return copies of the tensors of the output."""
        leaves, self._tree = tree_flatten(output)
        self._rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tuple(leaf.clone() if isinstance(leaf, Tensor) else None for leaf in leaves)

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return a copy of the branch as the model returned its last output."""
        assert self._tree is not None
        leaves = zip(branch, self._rest, strict=True)
        return tree_unflatten([rest if part is None else part.clone() for part, rest in leaves], self._tree)


class ResidualForm(OutputForm):
    """The module's output includes its input; the layer is output minus input.

    An output stream is matched to its input by the names in the module's `return`, where they are names of
    parameters, else by shape, in the order of the parameters. A stream without a matching input is kept whole.
    """

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return output minus input."""
        whole = super().branch(module, args, kwargs, output)
        return _with_inputs(torch.sub, module, args, kwargs, whole)

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return input plus branch."""
        return super().stand_in(module, args, kwargs, _with_inputs(torch.add, module, args, kwargs, branch))


def _with_inputs(
    function: Callable[[Tensor, Tensor], Tensor],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    branch: Branch,
) -> Branch:
    streams = (branch,) if isinstance(branch, Tensor) else branch
    kind: Any = type(module)
    names, returned = _reads(kind)
    given: list[tuple[str, Any]] = [
        (name, args[place] if place < len(args) else kwargs.get(name))
        for place, name in enumerate(names or tuple(map(str, range(len(args)))))
    ]
    given += [(name, value) for name, value in kwargs.items() if name not in names]
    own = returned.get(len(streams), (None,) * len(streams))
    named = any(name in names for name in own)
    used: list[str] = []
    results: list[Tensor | None] = []
    for stream, name in zip(streams, own, strict=True):
        found = None
        if stream is not None:
            for candidate, value in given:
                fits = isinstance(value, Tensor) and value.shape == stream.shape and candidate not in used
                if fits and (candidate == name if named else value.is_floating_point()):
                    found = value
                    used.append(candidate)
                    break
        results.append(stream if stream is None or found is None else function(stream, found))
    return results[0] if isinstance(branch, Tensor) else tuple(results)  # type: ignore[return-value]


@lru_cache(maxsize=256)
def _reads(kind: type) -> tuple[tuple[str, ...], dict[int, tuple[str | None, ...]]]:
    """Return a class's parameters, and the names in its `return` by their number (an expression has none)."""
    forward: Any = kind.forward  # type: ignore[attr-defined]
    parameters = inspect.signature(forward).parameters.values()
    names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):  # no source at hand: shapes decide
        return names, {}
    returned: dict[int, tuple[str | None, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            members = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            found = tuple(member.id if isinstance(member, ast.Name) else None for member in members)
            returned.setdefault(len(found), found)
    return names, returned


def opened(output: Any) -> tuple[tuple[Any, ...], Callable[[list[Any]], Any]] | None:
    """Return the members of an output, and what makes such an output of others; None where it has no members."""
    kind: Any = type(output)
    if isinstance(output, Mapping):
        return tuple(output.values()), partial(_by_name, kind, tuple(output))
    if dataclasses.is_dataclass(output):
        names = tuple(field.name for field in dataclasses.fields(output) if field.init)
        return tuple(getattr(output, name) for name in names), partial(_by_name, kind, names)
    if isinstance(output, (tuple, list)):
        return tuple(output), kind._make if hasattr(kind, "_make") else kind
    return None


def _by_name(kind: Any, names: Sequence[Any], members: list[Any]) -> Any:
    found = dict(zip(names, members, strict=True))
    return found if kind is dict else kind(**found)


def first(output: Any, *, listed: bool = False) -> Tensor:
    """Return a module's prediction: its output itself, or the first tensor of a tuple or output object.

    Args:
        output: what the module returned.
        listed: whether a list holds one tensor for each sample, which are then stacked.

    Raises:
        ValueError: if the output holds no tensor in its first place.

    """
    inner = output
    while not isinstance(inner, Tensor):
        if listed and isinstance(inner, list):
            return torch.stack(inner)
        found = opened(inner)
        if not found or not found[0]:
            raise ValueError(
                "a module must return its prediction as a tensor, or a tuple, list, dict, dataclass or output object "
                f"that begins with it, got {type(output).__name__}; wrap a module around it whose forward returns "
                "the tensor"
            )
        inner = found[0][0]
    return inner
