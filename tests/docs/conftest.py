"""What the marked blocks of the pages are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def given() -> Callable[[str], dict[str, Any]]:
    """Return the function that gives the names that a marked block expects."""

    def names(mark: str) -> dict[str, Any]:
        raise AssertionError(f"no page may ask for {mark!r}: it is unknown")

    return names
