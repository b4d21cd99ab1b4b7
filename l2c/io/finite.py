"""Refuses NaN and infinities in tensors that would be written or kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinities."""
    return [
        name
        for name, tensor in tensors.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all())
    ]


def check_finite(what: str, tensor: Tensor, *, mend: str) -> None:
    """Refuse a tensor that holds NaN or infinities.

    Args:
        what: the plural name of its values, such as `images`.
        tensor: any shape.
        mend: what to change, an imperative clause.

    Raises:
        ValueError: if it is not finite; the message counts the samples of the first dimension that are not.

    """
    if not not_finite({what: tensor}):
        return
    count = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).sum()) if tensor.ndim > 1 else 1
    of = f"{count} of {len(tensor)} {what}" if tensor.ndim > 1 else what
    raise ValueError(f"{of} are not finite (NaN or infinite); nothing is written; {mend}")
