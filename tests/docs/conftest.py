"""What the marked blocks and the commands of the pages are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doc_pages import FEW_EVALUATIONS, SMALL, linear_graph
from PIL import Image

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


@pytest.fixture
def placed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable,
    tiny_emoji: Callable[[Path], None],
) -> Callable[[str, list[str]], list[str]]:
    """Return the function that puts real files where a page's call names a user's own; made when they are named."""
    made: dict[str, str] = {}

    def calibration() -> str:
        few = [*SMALL["calibrate"], FEW_EVALUATIONS]
        done = command("calibrate", "measure=[changes,responses]", *few, "output=own.safetensors", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return "own.safetensors"

    def scores() -> str:
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).random((20, 16)))
        return "mine.npy"

    def prompts() -> str:
        (tmp_path / "prompts.txt").write_text("a cat\na red dog\n", encoding="utf-8")
        return "prompts.txt"

    def pictures() -> str:
        for name in ("a", "b", "c", "d"):
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
        return "pictures"

    def graph() -> str:
        return str(linear_graph(tmp_path))

    def emoji() -> str:
        tiny_emoji(tmp_path)
        monkeypatch.setenv("L2C_CACHE", str(tmp_path))
        return ""

    stands_for: dict[str, dict[str, Callable[[], str]]] = {
        "docs/training.md": {"runs/tour/cache_graph.json": graph},
        "docs/policies.md": {
            "runs/make_graph/.../cache_graph.json": graph,
            "calibration=PATH": lambda: f"calibration={calibration()}",
            "graph=PATH": lambda: f"graph={graph()}",
            "mine.npy": scores,
            "budget=14": lambda: "budget=3",
        },
        "docs/pipelines.md": {
            "pipeline=PATH": lambda: f"pipeline={request.getfixturevalue('tiny_pipeline')}",
            "prompts.txt": prompts,
            "GRAPH": lambda: "runs/mine/cache_graph.json",
            "num_evaluations=20": lambda: "num_evaluations=4",
        },
        "docs/testbeds.md": {
            "folder=PATH": lambda: f"folder={pictures()}",
            "RUN": lambda: "runs/train_backbone/dit_emoji",
            "model=dit_emoji": lambda: f"model=dit_emoji{emoji()}",
            "max_steps=27000": lambda: "max_steps=3",
            "max_steps=40000": lambda: "max_steps=4",
        },
    }

    def put(page: str, call: list[str]) -> list[str]:
        for word, make in stands_for.get(page, {}).items():
            if any(word in part for part in call):
                made[word] = made.get(word) or make()
                call = [part.replace(word, made[word]) for part in call]
        return call

    return put
