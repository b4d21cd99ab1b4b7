"""Pipelines over the same weights, each with a cache of its own: what the benchmarks of several caches share."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import LINEAR

COMPUTE_ALL = 1e9  # a threshold that every difference is below


def twin(pipe: Any) -> Any:
    """Return a second pipeline with modules of its own over the same weights."""
    parts = [*pipe.transformer.parameters(), *pipe.transformer.buffers()]
    transformer = copy.deepcopy(pipe.transformer, {id(part): part for part in parts})
    components = {**pipe.components, "transformer": transformer, "scheduler": copy.deepcopy(pipe.scheduler)}
    pipe = type(pipe)(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def graph_of(
    pipe: Any, rows: Sequence[Sequence[bool]], timesteps: Sequence[float], *, of: str, linear: bool = False
) -> CacheGraph:
    """Return the graph of some rows over layers, or whole blocks, at timesteps as the model is given them."""
    from l2c.integrations.diffusers.layers import find_layers

    return CacheGraph(
        rows=tuple(map(tuple, rows)),
        layers=find_layers(pipe.transformer, of=(of,)),
        timesteps=tuple(timesteps),
        model=type(pipe.transformer).__name__,
        solver=type(pipe.scheduler).__name__,
        reuse=(LINEAR,) * len(rows) if linear else (),
    )


def first_block_at_odd_steps(pipe: Any, steps: int) -> None:
    """Let cache-dit compute the first block alone at steps 1, 3, ...

    Raises:
        ModuleNotFoundError: if cache_dit is not installed.

    """
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=0,
        residual_diff_threshold=COMPUTE_ALL,
        num_inference_steps=steps,
        steps_computation_mask=[1 - e % 2 for e in range(steps)],
        steps_computation_policy="static",
    )
    logging.disable(logging.INFO)
    cache_dit.enable_cache(pipe, cache_config=config)
