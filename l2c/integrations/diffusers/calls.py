"""Detects running calls of pipelines, and their thread: two calls at once would share a scheduler."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn

from l2c.integrations.diffusers.denoisers import denoisers_in


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


def caller_of(model: nn.Module, usual: Any) -> Any:
    """Return the pipeline in whose call this thread runs a model; `usual` outside of a call.

    A model belongs to several pipelines where one is made from the parts of another (`from_pipe`).
    """
    return next((pipe for _, pipe in calls_in() if _has(pipe, model)), usual)


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
