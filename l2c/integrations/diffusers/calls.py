"""Detects running calls of a pipeline, and their thread: two calls at once would share its scheduler."""

from __future__ import annotations

import inspect
import sys
import threading
from types import FrameType
from typing import Any


def call_of(pipe: Any, thread: int | None = None) -> FrameType | None:
    """Return the frame of the call of a pipeline that a thread is in, None where it is in none.

    Args:
        pipe: a diffusers pipeline.
        thread: its number; None = this one.

    """
    code = inspect.unwrap(type(pipe).__call__).__code__
    frame: Any = sys._current_frames().get(threading.get_ident() if thread is None else thread)
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is pipe:
            return frame
        frame = frame.f_back
    return None


def called_elsewhere(pipe: Any) -> bool:
    """Return whether another thread is in a call of the pipeline."""
    own = threading.get_ident()
    return any(call_of(pipe, thread) is not None for thread in list(sys._current_frames()) if thread != own)
