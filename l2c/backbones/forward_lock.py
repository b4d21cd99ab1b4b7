"""Serialises forwards: a module's replaced outputs are set per forward."""

from __future__ import annotations

import threading
from typing import Any


class ForwardLock:
    """A lock that a thread may take twice; copies and pickles of its owner get a lock of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardLock:
        return ForwardLock()

    def __reduce__(self) -> tuple[type[ForwardLock], tuple[()]]:
        return ForwardLock, ()
