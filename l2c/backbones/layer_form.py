"""How the layer inside a module that is not ours is found in its output, and put back where it is reused.

The modules of other packages return a branch's output before its gate (`OUTPUT`: attention, feed-forward), or a whole
block with its input already added (`RESIDUAL`). What is kept is the branch alone: a tensor, or a tuple of them for
modules that work on two streams of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from l2c.graph import predictor

Branch: TypeAlias = "Tensor | tuple[Tensor | None, ...]"


def over(function: Callable[..., Tensor], *branches: Branch) -> Branch:
    """Apply a function of tensors to branches alike, stream by stream."""
    if isinstance(branches[0], Tensor):
        return function(*branches)
    return tuple(None if streams[0] is None else function(*streams) for streams in zip(*branches, strict=True))


def ahead(last: Branch, before: Branch, slope: float) -> Branch:
    """Return `last + slope (last - before)`."""
    return over(lambda new, old: predictor.ahead(new, old, slope), last, before)


class LayerForm(Protocol):
    """A way to read a layer out of a module's output and to write it back."""

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return the layer's output within what the module returned for these arguments."""

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return what the module would return if its layer's output were this."""


class OutputForm:
    """The module's output is the layer's."""

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return the output as it is."""
        return output

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return the branch as it is."""
        return branch


class ResidualForm:
    """The module adds its input itself; the layer is what it adds.

    Tokens are the first argument, or `hidden_states`. A module that returns a pair returns it as
    `(encoder_hidden_states, hidden_states)`; a tuple of one, and an output object, hold the tokens alone.
    """

    def branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return output minus input."""
        if isinstance(output, tuple) and len(output) == 2:
            text, x = output
            text_0 = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
            return (None if text is None else text - text_0, x - _tokens(args, kwargs))
        return first(output) - _tokens(args, kwargs)

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Any:
        """Return input plus branch."""
        if isinstance(branch, tuple):
            text, x = branch
            text_0 = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
            assert x is not None
            return (None if text is None else text_0 + text, _tokens(args, kwargs) + x)
        x = _tokens(args, kwargs) + branch
        return (x,) if kwargs.get("return_dict") is False else x


def _tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def first(output: Any) -> Tensor:
    """Return the tensor that a module answers with: the output itself, or the first of a tuple or output object."""
    return output if isinstance(output, Tensor) else output[0]


OUTPUT = OutputForm()
RESIDUAL = ResidualForm()
