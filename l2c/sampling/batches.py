"""Many images in memory: their labels in turn, and sampling batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm


class Draws(Protocol):
    """A sampler: draws images from noise."""

    def sample(self, labels: Tensor | None, *, noise: Tensor, seed: int | None, first_image: int) -> Tensor:
        """Return images (N, C, H, W) for labels (N,) and noise (N, C, H, W)."""


def labels_in_turn(num_labels: int, count: int, *, first: int = 0) -> Tensor | None:
    """Return labels (count,) that go round: image i has label i modulo `num_labels`.

    Args:
        num_labels: labels are 0..num_labels-1; 0 for a backbone without labels, which gives None.
        count: number of images.
        first: number of the first image.

    """
    return torch.arange(first, first + count) % num_labels if num_labels else None


def in_batches(labels: Tensor | None, noise: Tensor, batch_size: int) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """Yield the first image's number, labels (n,) or None and noise (n, C, H, W) of `batch_size` images at a time."""
    for start in range(0, len(noise), batch_size):
        part = slice(start, start + batch_size)
        yield start, None if labels is None else labels[part], noise[part]


def sample_in_batches(
    sampler: Draws,
    labels: Tensor | None,
    noise: Tensor,
    *,
    batch_size: int,
    seed: int = 0,
    first_image: int = 0,
    advance: tqdm | None = None,
) -> Tensor:
    """Return images (N, C, H, W) on the CPU, drawn `batch_size` at a time.

    Args:
        sampler: draws the images.
        labels: (N,); None for a backbone without labels.
        noise: (N, C, H, W), standard normal.
        batch_size: images at a time.
        seed: seed of what a stochastic solver adds; its streams belong to images, so batches do not change them.
        first_image: number of the first image among all images of the seed.
        advance: a bar over images.

    Raises:
        ValueError: if an image is not finite.

    """
    images = []
    for start, chosen, part in in_batches(labels, noise, batch_size):
        batch = sampler.sample(chosen, noise=part, seed=seed, first_image=first_image + start)
        images.append(batch.cpu())
        if advance is not None:
            advance.update(len(batch))
    return torch.cat(images)
