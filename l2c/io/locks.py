"""Locks that their owners' copies do not share."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any


class OwnLock:
    """A re-entrant lock; a copy or a pickle of its owner gets one of its own, unlocked."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> OwnLock:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnLock, ()
