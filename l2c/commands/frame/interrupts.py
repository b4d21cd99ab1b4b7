"""Ctrl-C in a command: it ends as an interrupt, whatever the library that it came in makes of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Let Ctrl-C leave the `with` block as `KeyboardInterrupt`.

    Libraries make errors of their own of it (safetensors says that a file is damaged, omegaconf that a setting does
    not exist), and Python drops it in a destructor. Where Ctrl-C is ignored, as in a job that a script put into the
    background, it stays so.

    Raises:
        KeyboardInterrupt: if Ctrl-C came.

    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    handles = callable(before) and threading.current_thread() is threading.main_thread()
    if handles:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if not came:
            raise
    finally:
        if handles:
            signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
