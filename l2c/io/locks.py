"""Locks that their owners' copies, and forked processes, do not share."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any


class OwnLock:
    """A re-entrant lock; a copy or a pickle of its owner, and a forked process, gets one of its own, unlocked."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> OwnLock:
        if self._process != os.getpid():  # the thread that held it while the process forked is not in this one
            self.__init__()  # type: ignore[misc]
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnLock, ()
