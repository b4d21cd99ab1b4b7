"""A graph as a per-step mask of cache-dit, which computes or skips all middle blocks of a step alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import takes
from l2c.graph.layer_names import ends_in_output
from l2c.graph.predictor import HOLD
from l2c.io.atomic import write_json
from l2c.io.numbers import finite_number


@dataclass(frozen=True)
class StepMask:
    """A step mask, and its loss against the graph.

    Attributes:
        mask: one bit per step, 1 = compute.
        now_reused: entries (evaluation, layer) that the graph computes and the mask skips.
        now_computed: entries that the graph reuses and the mask computes.
        num_entries: all of them.
        linear: evaluations whose linear or fitted reuse becomes a plain one.

    """

    mask: tuple[int, ...]
    now_reused: int
    now_computed: int
    num_entries: int
    linear: int

    def summary(self) -> str:
        """Return one line for people on what the mask loses."""
        bits = "".join(map(str, self.mask))
        return (
            f"step mask {bits}: {self.now_reused} of {self.num_entries} entries that the graph computes are skipped "
            f"(but for cache-dit's first blocks), {self.now_computed} that it reuses are computed, {self.linear} "
            "steps lose their extrapolation; timesteps, weights and guidance are not checked"
        )


@takes(graph=CacheGraph)
def step_mask(graph: CacheGraph, *, share: float = 0.5) -> StepMask:
    """Return the mask that skips the evaluations which reuse at least a share of their layers.

    Raises:
        ValueError: if the share is not in (0, 1].

    """
    share = finite_number("share", share)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}; 0.5 skips steps that reuse half of their layers")
    rows = [row[:-1] for row in graph.rows] if ends_in_output(graph.layers) else graph.rows  # of the layers alone
    skipped = [row.count(False) >= share * len(row) for row in rows]
    return StepMask(
        mask=tuple(int(not skip) for skip in skipped),
        now_reused=sum(row.count(True) for row, skip in zip(rows, skipped, strict=True) if skip),
        now_computed=sum(row.count(False) for row, skip in zip(rows, skipped, strict=True) if not skip),
        num_entries=sum(map(len, rows)),
        linear=sum(skip and way != HOLD for way, skip in zip(graph.reuse, skipped, strict=True)),
    )


def export_cache_dit(graph: CacheGraph, path: str | Path, *, share: float = 0.5) -> StepMask:
    """Write a graph's step mask as a configuration that cache-dit loads (JSON, which is YAML); return what it keeps.

    Lossy: `StepMask.summary()` says what is lost.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the share is not in (0, 1].

    """
    result = step_mask(graph, share=share)
    config = {
        "cache_config": {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "max_warmup_steps": 0,
            "num_inference_steps": len(result.mask),
            "steps_computation_mask": list(result.mask),
            "steps_computation_policy": "static",
        }
    }
    write_json(path, config)
    return result
