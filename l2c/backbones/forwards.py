"""Forwards that stand in the place of modules' own during an evaluation, in the thread that makes it."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from l2c.backbones.single_plan import ran_twice
from l2c.io.locks import OwnLock

_CHANGES = OwnLock()


INSIDE_COMPILED = "_orig_mod"  # the module that `torch.compile(module)` holds
COMPILED_CALL = "_compiled_call_impl"  # what `module.compile()` puts in the place of a module's call


def without_wrapper(name: str) -> str:
    """Return the dotted name of a module or weight without the parts that `torch.compile(module)` puts between."""
    return ".".join(part for part in name.split(".") if part != INSIDE_COMPILED)


def eagerly() -> AbstractContextManager[Any]:
    """Return a `with` block in which what is compiled runs as it was written, hooks and all."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def compiled(module: nn.Module) -> bool:
    """Return whether a module was compiled, by `module.compile()` or `torch.compile(module)`."""
    return getattr(module, COMPILED_CALL, None) is not None or hasattr(module, INSIDE_COMPILED)


def uncompiled(module: nn.Module) -> Callable[..., Any]:
    """Return what replaces the forward of a compiled module, `call(forward, *args, **kwargs)`: it runs uncompiled."""
    inner: Any = getattr(module, INSIDE_COMPILED, None)
    own: Any = module._call_impl if inner is None else inner
    return lambda forward, *args, **kwargs: own(*args, **kwargs)


def _place(module: nn.Module) -> str:
    """Return the attribute that holds what a call of a module runs."""
    return "forward" if getattr(module, COMPILED_CALL, None) is None else COMPILED_CALL


class _Forward:
    """A module's forward while evaluations run: in their threads what each put there, in others the module's own.

    That of a compiled module is its compiled call. A copy or a pickle of the module has the module's own.
    """

    def __init__(self, module: nn.Module) -> None:
        self.place = _place(module)
        self.own = getattr(module, self.place)
        self.calls: dict[threading.Thread, list[Callable[..., Any]]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        calls = self.calls.get(threading.current_thread())
        return (calls[-1] if calls else self.own)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.own, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_is, (self.own,)


def _as_it_is(forward: Any) -> Any:
    return forward


@contextmanager
def replaced(calls: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forwards of modules for the time of a `with` block, in this thread alone.

    Args:
        calls: `call(forward, *args, **kwargs)` of each module, which is given the forward that it replaces.

    """
    thread = threading.current_thread()
    placed = []
    with _CHANGES:
        for module, call in calls.items():
            forward = module.__dict__.get(_place(module))
            if not isinstance(forward, _Forward):
                forward = _Forward(module)
                module.__dict__[forward.place] = forward
            stack = forward.calls.setdefault(thread, [])
            stack.append(partial(call, stack[-1] if stack else forward.own))
            placed.append((module, forward))
    try:
        yield
    finally:
        with _CHANGES:
            for module, forward in placed:
                _take_back(module, forward, thread)


def _take_back(module: nn.Module, forward: _Forward, thread: threading.Thread) -> None:
    """End a thread's last replacement of a forward; after the last of all threads the module is as it was."""
    forward.calls[thread].pop()
    if not forward.calls[thread]:
        del forward.calls[thread]
    place = forward.place
    if not forward.calls and module.__dict__.get(place) is forward:
        del module.__dict__[place]
        if getattr(module, place) != forward.own:  # one that somebody had put there
            module.__dict__[place] = forward.own


def in_turn(name: str, calls: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Return a forward that is each of `calls` once.

    Raises:
        ValueError: if the returned forward is called more often.

    """
    left = iter(calls)

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = next(left, None)
        if call is None:
            raise ValueError(ran_twice(name))
        return call(*args, **kwargs)

    return forward
