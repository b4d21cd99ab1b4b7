"""Batches that a network runs in parts, because rows differ in shape inside it (prompts of different lengths)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def in_order(parts: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Return the outputs (N_i, ...) of the parts of a batch as one tensor (N, ...).

    Args:
        parts: (N_i,) places in the batch, of each part.
        outputs: (N_i, ...) of each part.

    """
    return torch.cat(list(outputs))[torch.cat(list(parts)).argsort()]


def alike(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return outputs (N_i, ...) of different shapes flat, (N_i, M), the shorter ones filled with zeros."""
    flat = [output.flatten(1) for output in outputs]
    width = max(output.shape[1] for output in flat)
    return [pad(output, (0, width - output.shape[1])) for output in flat]


def part_of(whole: Tensor, places: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Return one part of outputs (N, M) that `alike` made, in its own shape (N_i, *shape); None = as they are."""
    rows = whole[places]
    return rows if shape is None else rows[:, : torch.Size(shape).numel()].reshape(len(rows), *shape)
