"""Settings of drawing many images."""

from __future__ import annotations

from dataclasses import dataclass

from l2c.io.numbers import LARGEST_SEED
from l2c.io.settings import Settings, text, whole

LABELS = ("balanced", "random")


@dataclass(frozen=True)
class DrawingSettings(Settings):
    """Number of images, their noise and labels, and the sizes of batches and shards.

    Attributes:
        num_images: number of images in all.
        seed: seed of noise and labels.
        labels: `balanced` goes round all labels, `random` draws each.
        batch_size: images at a time, of one process.
        shard_size: images per file.

    """

    num_images: int = whole(50_000, at_least=1, at_most=10**9)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    labels: str = text("balanced", choices=LABELS)
    batch_size: int = whole(32, at_least=1, at_most=10**6)
    shard_size: int = whole(512, at_least=1)
