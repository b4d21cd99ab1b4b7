"""Scale-shift adjustment (Cache Me if You Can, CVPR 2024, section 3.4) of the predictions of reused layers.

Per reused layer and evaluation `scale * value + shift` with a number per channel: one fused multiply-add. Channels
are the last dimension of tokens (N, T, D) and the second one of maps (N, D, H, W); streams of tokens share theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.correction_file import FORMAT, CorrectionFile, is_correction
from l2c.graph.fields import Entry
from l2c.graph.predictor import WEIGHTED, counts_before
from l2c.io.digests import digest_of_text
from l2c.io.names import shown
from l2c.io.tensors import opened, write_tensors

Rows: TypeAlias = "Tensor | Sequence[Tensor]"  # (R, D), or R of (D,) where layers differ in width


def reused_entries(graph: CacheGraph) -> list[Entry]:
    """Return the R entries (evaluation, layer) that a graph reuses, in the order of a correction's rows."""
    return [(e, layer) for e, layers in enumerate(graph.reused) for layer in layers]


def has_slopes(graph: CacheGraph) -> bool:
    """Return whether an entry that reuses has two computed outputs before it, on whose difference a slope acts."""
    counts = zip(graph.reused, counts_before(graph.rows), strict=True)
    return any(computed[layer] >= 2 for layers, computed in counts for layer in layers)


def plan_digest(graph: CacheGraph) -> str:
    """Return a digest of what is reused when, by which network."""
    plan: tuple[Any, ...] = (
        graph.model,
        graph.fingerprint,
        graph.layers,
        graph.rows,
        graph.timesteps,
        graph.entry_slopes,
    )
    if WEIGHTED in graph.reuse:
        plan += (graph.weights,)
    return digest_of_text(json.dumps(plan))


def channels(value: Tensor) -> int:
    """Return which dimension of a layer's output (N, T, D) or (N, D, H, W) holds its channels."""
    return 1 if value.ndim > 3 else value.ndim - 1


def corrected(value: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return `scale * value + shift` for an output (N, T, D) or (N, D, H, W), scale (D,) and shift (D,)."""
    behind = (1,) * (value.ndim - 1 - channels(value))
    return torch.addcmul(shift.view(-1, *behind), value, scale.view(-1, *behind))


@torch.no_grad()
def layer_widths(backbone: Backbone) -> tuple[int, ...]:
    """Return the number of channels of each layer's output; runs the backbone once where it does not know them."""
    if backbone.layer_shape is not None:
        return (backbone.layer_shape[1],) * backbone.num_layers
    like = next(backbone.parameters())
    x = torch.zeros(1, *backbone.input_shape, device=like.device, dtype=backbone.dtype)
    y = torch.zeros(1, dtype=torch.long, device=like.device) if backbone.num_labels else None
    _, outputs = backbone.forward_cached(x, torch.ones(1, device=like.device), y, (True,) * backbone.num_layers)
    return tuple(output.shape[channels(output)] for output in outputs if output is not None)


class Correction:
    """The scales and shifts of all reused entries of a graph.

    Args:
        graph: graph that the entries belong to.
        scale: (R, D), see `reused_entries`; R tensors (D,) where layers differ in width.
        shift: (R, D) as `scale`, or R tensors (D,).

    """

    def __init__(self, graph: CacheGraph, scale: Rows, shift: Rows) -> None:
        self.rows: Mapping[Entry, int] = {entry: i for i, entry in enumerate(reused_entries(graph))}
        self.scale = scale
        self.shift = shift
        self._moved: dict[tuple[torch.device, torch.dtype], tuple[Rows, Rows]] = {}

    def apply(self, evaluation: int, layer: int, value: Tensor) -> Tensor:
        """Return the corrected prediction (N, T, D) or (N, D, H, W).

        Raises:
            ValueError: if the prediction has another number of channels.

        """
        key, row = (value.device, value.dtype), self.rows[evaluation, layer]
        if key not in self._moved:
            self._moved[key] = (_moved(self.scale, value), _moved(self.shift, value))
        scale, shift = self._moved[key]
        width = value.shape[channels(value)]
        if len(scale[row]) != width:
            raise ValueError(
                f"the correction holds {len(scale[row])} channels for layer {layer} at evaluation {evaluation}, but "
                f"the layer has {width}; take a correction of this model"
            )
        return corrected(value, scale[row], shift[row])

    @classmethod
    def of(cls, graph: CacheGraph) -> Correction | None:
        """Return the correction that a graph names; None where it names none.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if the file is another one, or was made for another graph.

        """
        if graph.correction is None:
            return None
        graph.correction.check()
        plan, scale, shift = _read(graph.correction.path.absolute(), graph.correction.fingerprint)
        count = len(reused_entries(graph))
        if plan != plan_digest(graph) or len(scale) != count:
            raise ValueError(
                f"{graph.correction.path} was made for another graph, with other rows, slopes or weights; "
                "make one for this graph with l2c correct"
            )
        return cls(graph, scale, shift)


def save_correction(path: str | Path, graph: CacheGraph, scale: Rows, shift: Rows, **settings: Any) -> CacheGraph:
    """Write a correction as safetensors and return the graph that names it.

    The file holds `scale` and `shift`: (R, D) where all entries have one width, else all entries one after the other,
    with the width of each in the header.

    Args:
        path: path of the file.
        graph: graph that the reused entries belong to.
        scale: (R, D), see `reused_entries`; R tensors (D,) where layers differ in width.
        shift: (R, D) as `scale`, or R tensors (D,).
        settings: settings of the training, kept in the file.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if a number is not finite, or the path belongs to a file that is no correction.

    """
    if Path(path).exists() and not is_correction(Path(path)):
        raise ValueError(f"{path} exists and is no correction, so none is written over it; give another path")
    if not all(row.isfinite().all() for row in (*scale, *shift)):
        raise ValueError("scales and shifts must be finite numbers; lower the learning rate of their training")
    widths = [len(row) for row in scale]
    ragged = len(set(widths)) > 1
    header = {
        "format": FORMAT,
        "plan": plan_digest(graph),
        "settings": settings,
        **({"widths": widths} if ragged else {}),
    }
    tensors = {
        name: (torch.cat(list(rows)) if ragged else torch.stack(list(rows))).detach().float().cpu().contiguous()
        for name, rows in (("scale", scale), ("shift", shift))
    }
    write_tensors(path, tensors, {"l2c": json.dumps(header)})
    return graph.replace(correction=CorrectionFile.of(path))


def _moved(rows: Rows, like: Tensor) -> Rows:
    """Return rows of the kind of a tensor, moved as one."""
    if isinstance(rows, Tensor):
        return rows.to(like)
    return torch.cat(list(rows)).to(like).split([len(row) for row in rows])


@lru_cache(maxsize=16)
def _read(path: Path, fingerprint: str) -> tuple[str, Rows, Rows]:
    """Return the plan that a file was made for, scale and shift; a file is known by its fingerprint."""
    again = "make them with l2c correct"
    try:
        with opened(path, what="scales and shifts of l2c", again=again) as file:
            header = json.loads((file.metadata() or {})["l2c"])
            if header["format"] != FORMAT:
                raise KeyError(FORMAT)
            scale, shift = file.get_tensor("scale"), file.get_tensor("shift")
            if scale.shape != shift.shape or scale.ndim != (1 if "widths" in header else 2):
                raise ValueError("scale and shift differ")
            rows: tuple[Rows, Rows] = (scale, shift)
            if "widths" in header:
                rows = (scale.split(header["widths"]), shift.split(header["widths"]))
            plan = str(header["plan"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{shown(path, 300)} holds no scales and shifts of l2c; {again}") from error
    if not scale.isfinite().all() or not shift.isfinite().all():
        raise ValueError(
            f"{path} holds scales or shifts that are no finite numbers; the training that wrote it failed: make the "
            "correction again with l2c correct"
        )
    return plan, *rows
