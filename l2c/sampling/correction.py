"""Scale-shift adjustment (Cache Me if You Can, CVPR 2024, section 3.4): what stands in for a layer, corrected.

Per reused layer and evaluation `scale * value + shift` with a number per channel: one fused multiply-add.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from l2c.atomic import replacing
from l2c.correction_file import CorrectionFile
from l2c.graph import CacheGraph

FORMAT = "l2c-scale-shift"
Entry = tuple[int, int]


def reused_entries(graph: CacheGraph) -> list[Entry]:
    """Return the R entries (evaluation, layer) that a graph reuses, in the order of a correction's rows."""
    return [(e, layer) for e, row in enumerate(graph.rows) for layer, fresh in enumerate(row) if not fresh]


def plan_digest(graph: CacheGraph) -> str:
    """Return a digest of what is reused when, by which network."""
    plan = (graph.model, graph.fingerprint, graph.layers, graph.rows, graph.timesteps, graph.slopes)
    return f"sha256:{hashlib.sha256(json.dumps(plan).encode()).hexdigest()}"


class Correction:
    """The scales and shifts of all reused entries of a graph.

    Args:
        graph: whose entries they are.
        scale: (R, D), see `reused_entries`.
        shift: (R, D).

    """

    def __init__(self, graph: CacheGraph, scale: Tensor, shift: Tensor) -> None:
        self.rows: Mapping[Entry, int] = {entry: i for i, entry in enumerate(reused_entries(graph))}
        self.scale = scale
        self.shift = shift
        self._moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def apply(self, evaluation: int, layer: int, value: Tensor) -> Tensor:
        """Return the corrected stand-in (N, T, D)."""
        key, row = (value.device, value.dtype), self.rows[evaluation, layer]
        if key not in self._moved:
            self._moved[key] = (self.scale.to(value), self.shift.to(value))
        scale, shift = self._moved[key]
        return torch.addcmul(shift[row], value, scale[row])

    @classmethod
    def of(cls, graph: CacheGraph) -> Correction | None:
        """Return the correction that a graph names; None where it names none.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is another file, or was made for another graph.

        """
        if graph.correction is None:
            return None
        graph.correction.check()
        plan, scale, shift = _read(graph.correction.path.absolute(), graph.correction.fingerprint)
        count = len(reused_entries(graph))
        if plan != plan_digest(graph) or scale.shape != shift.shape or len(scale) != count:
            raise ValueError(
                f"{graph.correction.path} was made for another graph, with other rows, slopes or weights; "
                "make one for this graph with scripts/train_scale_shift.py"
            )
        return cls(graph, scale, shift)


def save_correction(path: str | Path, graph: CacheGraph, scale: Tensor, shift: Tensor, **settings: Any) -> CacheGraph:
    """Write a correction as safetensors and return the graph that names it.

    Args:
        path: of the file.
        graph: whose reused entries these are.
        scale: (R, D), see `reused_entries`.
        shift: (R, D).
        settings: how it was made, kept in the file.

    """
    header = json.dumps({"format": FORMAT, "plan": plan_digest(graph), "settings": settings})
    tensors = {
        name: value.detach().float().cpu().contiguous() for name, value in (("scale", scale), ("shift", shift))
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"l2c": header})
    return graph.replace(correction=CorrectionFile.of(path))


@lru_cache(maxsize=16)
def _read(path: Path, fingerprint: str) -> tuple[str, Tensor, Tensor]:
    """Return the plan that a file was made for, scale and shift; a file is known by its fingerprint."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["l2c"])
            if header["format"] != FORMAT:
                raise KeyError(FORMAT)
            return header["plan"], file.get_tensor("scale"), file.get_tensor("shift")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} holds no scales and shifts of l2c; make them with scripts/train_scale_shift.py"
        ) from error
