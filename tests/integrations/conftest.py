"""Fixtures of tiny diffusers models and pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_diffusers import FAMILIES, PIPELINES, Family
from tiny_parts import make_tokenizer

import l2c


@pytest.fixture(scope="session")
def make_family() -> Callable[[str], Family]:
    """Return a maker of models by the name of their family."""
    pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

    def make(name: str, seed: int = 0) -> Family:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return FAMILIES[name]()

    return make


@pytest.fixture(scope="session")
def family_graph(random_rows: Callable) -> Callable[..., l2c.CacheGraph]:
    """Return a maker of random graphs for a family; whole blocks where `of` says so."""

    def make(family: Family, *, of: tuple[str, ...] | None = None, **changes: Any) -> l2c.CacheGraph:
        from l2c.integrations.diffusers.layers import find_layers

        layers = find_layers(family.model, of=of)
        return l2c.CacheGraph(
            **{
                "rows": random_rows(len(family.timesteps), len(layers), seed=3),
                "layers": layers,
                "timesteps": family.timesteps,
                "model": type(family.model).__name__,
                "solver": "DDIMScheduler",
                **changes,
            }
        )

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Callable[[int], Any]:
    """Return a maker of tokenizers of a few words, by the length of a prompt."""
    return make_tokenizer


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[[str], Any]:
    """Return a maker of whole pipelines from tiny random parts."""
    for package in ("diffusers", "transformers"):
        pytest.importorskip(package, reason=f"needs the package {package}: pip install '.[diffusers]'")

    def make(name: str, seed: int = 0) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            pipe = PIPELINES[name]()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make
