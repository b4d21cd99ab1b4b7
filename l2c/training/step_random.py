"""Random numbers that depend on seed and step alone, so that a resumed run continues bit for bit."""

from __future__ import annotations

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one training step."""
    return torch.Generator().manual_seed(seed * 1_000_000_007 + step)


def drop_labels(
    y: torch.Tensor, null_label: int | None, probability: float, generator: torch.Generator
) -> torch.Tensor:
    """Replace labels (N,) by the null label with the given probability (classifier-free guidance)."""
    if null_label is None or probability == 0:
        return y
    dropped = torch.rand(y.shape, generator=generator) < probability
    return torch.where(dropped.to(y.device), torch.full_like(y, null_label), y)
