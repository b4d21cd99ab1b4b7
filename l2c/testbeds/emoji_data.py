"""The emoji as training batches: classes drawn by the square root of their size, mirrored and shifted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from l2c.data.pixels import PixelDataModule
from l2c.data.share import parts
from l2c.data.step_sampler import NumberedBatchSampler
from l2c.io.names import chosen
from l2c.io.seeds import Stream
from l2c.io.tensors import digest_of_tensors
from l2c.testbeds.emoji import CLASSES, IMAGE_SHAPE, Emoji, emoji
from l2c.testbeds.settings import SKIN_TONES

MAX_SHIFT = 1  # pixels
FLAG = CLASSES.index("flag")


class BalancedBatchSampler(NumberedBatchSampler):
    """Yield items `(index, draw)`: a class by the square root of its size, then one of its pictures.

    Args:
        labels: (N,), the class of each picture.
        batch_size: items per step.
        seed: seed of what is drawn; a step's items depend on it and on the step's number alone.
        settings: see `StepBatchSampler`.

    """

    def __init__(self, labels: Tensor, batch_size: int, *, seed: int, **settings: Any) -> None:
        super().__init__(len(labels), batch_size, seed=seed, **settings)
        weights = labels.bincount().float().rsqrt()[labels]  # (N,), a class of n adds up to sqrt(n)
        self.shares = weights.cumsum(0) / weights.sum()  # (N,), up to each picture

    def batch(self, step: int) -> list[int]:
        """Return the indices of a step."""
        drawn = Stream("pictures of a training step", self.seed, step).uniform(self.batch_size)
        places = torch.searchsorted(self.shares, drawn.to(self.shares), right=True)
        return places.clamp(max=len(self.shares) - 1).tolist()

    def indices(self) -> Iterator[list[int]]:
        """Yield the indices of each step's batch, see `batch`."""
        return map(self.batch, itertools.count(self.start_step))


class EmojiPictures(Dataset[tuple[Tensor, int]]):
    """Item `(index, draw)` is picture `index` (3, 32, 32) in [-1, 1] and its label.

    It is shifted by up to a pixel and, but for flags, mirrored every other time; seed and draw alone decide.
    """

    def __init__(self, pictures: Emoji, seed: int) -> None:
        self.pictures = pictures
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = item
        label = int(self.pictures.labels[index])
        image = self.pictures.images[index].float() / 127.5 - 1
        down, right, mirrored = Stream("a picture", self.seed, draw).uniform(3).tolist()
        top, left = (int(share * (2 * MAX_SHIFT + 1)) for share in (down, right))
        padded = torch.nn.functional.pad(image, (MAX_SHIFT,) * 4, value=1.0)
        shifted = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        return (shifted.flip(-1) if mirrored < 0.5 and label != FLAG else shifted), label


class EmojiDataModule(PixelDataModule):
    """Emoji drawn on the fly: (N, 3, 32, 32) and labels 0..9; the seed is that of shifts and mirroring, too.

    Args:
        batch_size: images per step, over all processes.
        seed: seed of what is drawn.
        skin_tones: `all` variants in skin tones, or `none` of them.
        pictures: others than those of the file, in the same form.

    """

    image_shape = IMAGE_SHAPE
    num_classes = len(CLASSES)
    options = frozenset({"skin_tones"})

    def __init__(
        self, batch_size: int = 32, seed: int = 0, *, skin_tones: str = "all", pictures: Emoji | None = None
    ) -> None:
        super().__init__(batch_size, seed)
        chosen("data.skin_tones", skin_tones, SKIN_TONES)
        pictures = emoji() if pictures is None else pictures
        self.pictures = pictures if skin_tones == "all" else pictures.where(~pictures.toned)

    def identity(self) -> dict[str, str]:
        """Return a digest of the pictures."""
        return {"images_digest": digest_of_tensors(vars(self.pictures).items())}

    def images(self) -> EmojiPictures:
        """Return the pictures with their labels."""
        return EmojiPictures(self.pictures, self.seed)

    def batches(self, start: int) -> BalancedBatchSampler:
        """Return the sampler of batches from a step on."""
        return BalancedBatchSampler(
            self.pictures.labels, self.batch_size, seed=self.seed, start_step=start, parts=parts(self.trainer)
        )
