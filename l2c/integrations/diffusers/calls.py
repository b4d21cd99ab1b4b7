"""Detects running calls of pipelines, and their thread: two calls at once would share a scheduler."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any, ClassVar

from torch import nn

from l2c.integrations.diffusers.denoisers import denoisers_in
from l2c.integrations.diffusers.recorded.conditions import same
from l2c.io.locks import OwnLock

_PLAIN = "_l2c_plain"  # names the class that a scheduler has without us
_MARK = "_l2c_call"  # a name among the locals of a call
AT_ONCE = (
    "{} is being called in another thread, and both calls would share its scheduler; let them take turns, or give "
    "each thread a pipeline and scheduler of its own"
)
DISTURBED = (
    "another thread called {} with other arguments ({}) while this call ran, and the pipeline keeps them for both, "
    "so that this call cannot go on; call it again, and let threads take turns"
)


def calls_in(thread: int | None = None) -> Iterator[tuple[FrameType, Any]]:
    """Yield the frames of the calls of pipelines that a thread is in, innermost first, each with its pipeline.

    Args:
        thread: its number; None = this one.

    """
    frame: Any = sys._getframe() if thread is None else sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            pipe = frame.f_locals.get("self")
            if hasattr(pipe, "scheduler"):
                yield frame, pipe
        frame = frame.f_back


def call_of(pipe: Any, thread: int | None = None) -> FrameType | None:
    """Return the frame of the call of a pipeline that a thread is in, None where it is in none; see `calls_in`."""
    return next((frame for frame, found in calls_in(thread) if found is pipe), None)


class CallMark:
    """Stands for a call: a frame that is kept would keep what its call holds, and another one gets its identity."""


def mark_of(frame: FrameType) -> CallMark:
    """Return what stands for the call of this thread's frame, the same in all of the call; it lies in its locals."""
    return frame.f_locals.setdefault(_MARK, CallMark())


def caller_of(model: nn.Module, usual: Any) -> Any:
    """Return the pipeline in whose call this thread runs a model; `usual` outside of a call.

    A model belongs to several pipelines where one is made from the parts of another (`from_pipe`).
    """
    return next((pipe for _, pipe in calls_in() if _has(pipe, model)), usual)


def calls_with(model: nn.Module) -> list[CallMark]:
    """Return what stands for the calls of pipelines with a model that this thread is in, innermost first."""
    return [mark_of(frame) for frame, pipe in calls_in() if _has(pipe, model)]


def called_elsewhere(pipe: Any) -> bool:
    """Return whether another thread is in a call of the pipeline, or of one with the same scheduler."""
    return any(other.scheduler is pipe.scheduler for other in _calls_elsewhere())


def check_idle(model: nn.Module, what: str) -> None:
    """Refuse to change a model while another thread is in a call of a pipeline with it, half of which would change.

    Args:
        model: the model.
        what: what is to be done, words of the message.

    Raises:
        ValueError: if it is called elsewhere.

    """
    pipe = next((pipe for pipe in _calls_elsewhere() if _has(pipe, model)), None)
    if pipe is not None:
        raise ValueError(
            f"{type(pipe).__name__} is being called in another thread, and the rest of that call would change; "
            f"{what} when it has ended, or keep a copy of the {type(model).__name__} for each graph"
        )


def _calls_elsewhere() -> Iterator[Any]:
    """Yield the pipelines in whose calls other threads are."""
    own = threading.get_ident()
    for thread in sys._current_frames():
        if thread != own:
            yield from (pipe for _, pipe in calls_in(thread))


def _has(pipe: Any, model: nn.Module) -> bool:
    """Return whether a model is one of a pipeline's denoisers."""
    return any(part is model for part in denoisers_in(pipe).values())


class Turn:
    """The call that a scheduler's steps were set for; it has the scheduler until it ends.

    Args:
        frame: of the call.

    Attributes:
        thread: number of its thread.
        disturbed: names of the arguments that a call at the same time, which was refused, changed in the pipeline.

    """

    _turns: ClassVar[weakref.WeakKeyDictionary[Any, Turn]] = weakref.WeakKeyDictionary()
    _lock = OwnLock()

    def __init__(self, frame: FrameType) -> None:
        self.thread = threading.get_ident()
        self.disturbed: list[str] = []
        self._mark = mark_of(frame)

    def of(self, frame: FrameType) -> bool:
        """Return whether it is that of a call in this thread."""
        return self.thread == threading.get_ident() and self._mark is mark_of(frame)

    @classmethod
    def take(cls, scheduler: Any) -> None:
        """Take a scheduler for the call that this thread is in; of none nothing is known.

        Raises:
            ValueError: if the call of another thread has it.

        """
        frame, pipe = next(((f, p) for f, p in calls_in() if p.scheduler is scheduler), (None, None))
        with cls._lock:
            turn = cls._turns.get(scheduler)
            other = None if turn is None or turn.thread == threading.get_ident() else turn._running(scheduler)
            if turn is not None and other is not None:
                theirs, their_pipe = other
                if frame is not None and pipe is their_pipe:
                    turn.disturbed += _changed(pipe, dict(theirs.f_locals), dict(frame.f_locals))
                raise ValueError(AT_ONCE.format(type(their_pipe).__name__))
            if frame is not None:
                cls._turns[scheduler] = cls(frame)

    @classmethod
    def check(cls, scheduler: Any, call: FrameType) -> bool:
        """Return whether a scheduler was taken for a call in this thread.

        Raises:
            ValueError: if what the pipeline keeps of its arguments is no longer this call's.

        """
        turn = cls._turns.get(scheduler)
        if turn is None or not turn.of(call):
            return False
        if turn.disturbed:
            kind = type(call.f_locals.get("self")).__name__
            raise ValueError(DISTURBED.format(kind, ", ".join(dict.fromkeys(turn.disturbed))))
        return True

    def _running(self, scheduler: Any) -> tuple[FrameType, Any] | None:
        """Return the frame and the pipeline of the call, None once it has ended."""
        calls = ((frame, pipe) for frame, pipe in calls_in(self.thread) if pipe.scheduler is scheduler)
        return next(((f, pipe) for f, pipe in calls if f.f_locals.get(_MARK) is self._mark), None)


def _changed(pipe: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Return the arguments of a call that a pipeline keeps as attributes, and that differ from those of another."""
    kept = [name for name in inspect.signature(pipe.__call__).parameters if f"_{name}" in vars(pipe)]
    return [name for name in kept if not same(theirs.get(name), ours.get(name))]


def in_turns(scheduler: Any) -> None:
    """Let a scheduler refuse, from now on, to set its steps for a call while that of another thread has it.

    It becomes one of a class of the same name that equals the plain one (Bria compares types); copies and pickles of
    it are of the plain class.
    """
    kind: Any = type(scheduler)
    if not hasattr(kind, _PLAIN) and hasattr(kind, "set_timesteps"):
        scheduler.__class__ = _taken_in_turns(kind)


def at_will(scheduler: Any) -> None:
    """Undo `in_turns`."""
    scheduler.__class__ = getattr(type(scheduler), _PLAIN, type(scheduler))


class _Equal(type):
    """The type of classes that equal, as keys too, the plain class that they stand for."""

    def __eq__(cls, other: object) -> bool:
        return getattr(cls, _PLAIN, cls) is getattr(other, _PLAIN, other)

    def __hash__(cls) -> int:
        return hash(getattr(cls, _PLAIN, None))


@functools.cache
def _taken_in_turns(kind: Any) -> Any:
    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        Turn.take(self)
        return kind.set_timesteps(self, *args, **kwargs)

    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _made, (kind,), dict(vars(self))

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    meta: Any = type("_Equal", (_Equal, type(kind)), {})
    return meta(
        kind.__name__, (kind,), {**names, "set_timesteps": set_timesteps, "__reduce_ex__": reduced, _PLAIN: kind}
    )


def _made(kind: Any) -> Any:
    return kind.__new__(kind)
