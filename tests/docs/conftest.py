"""What the marked blocks of the pages are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import l2c


@pytest.fixture
def given(tiny_pipeline: Path, quick_acceleration: None) -> Callable[[str], dict[str, Any]]:
    """Return the function that gives the names that a marked block expects."""
    from diffusers import DiffusionPipeline

    def names(mark: str) -> dict[str, Any]:
        assert mark == "pipeline", f"unknown mark {mark!r}"
        pipe = DiffusionPipeline.from_pretrained(tiny_pipeline)
        pipe.set_progress_bar_config(disable=True)
        return {"l2c": l2c, "pipe": pipe, "prompts": ["a cat", "a red dog"], "prompt": "a blue cat"}

    return names
