"""The data module that small sets of images share: endless batches whose order depends on seed and step alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from l2c.data.share import parts
from l2c.data.step_sampler import StepBatchSampler


class PixelDataModule(pl.LightningDataModule):
    """Endless batches `(x_0, y)`: images (N, C, H, W) in [-1, 1] and labels (N,).

    Args:
        batch_size: images per step, over all processes.
        seed: seed of the order, and of what is drawn for an image.

    Attributes:
        image_shape: (C, H, W) of an image.
        num_classes: labels are 0..num_classes-1.
        options: names of the settings that a data set has of its own.
        sampler: makes the batches.

    """

    image_shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]
    options: ClassVar[frozenset[str]] = frozenset()
    sampler: ClassVar[type[StepBatchSampler]] = StepBatchSampler

    def __init__(self, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed

    @abstractmethod
    def images(self) -> Dataset[Any]:
        """Return the images with their labels."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Return what the images are, by name: a run that is resumed must have the same."""

    def batches(self, start: int) -> StepBatchSampler:
        """Return the sampler of batches from a step on."""
        return self.sampler(
            len(self.images()),  # type: ignore[arg-type]
            self.batch_size,
            seed=self.seed,
            start_step=start,
            parts=parts(self.trainer),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader, which begins at the step that the trainer stands at."""
        start = self.trainer.global_step if self.trainer is not None else 0
        return DataLoader(self.images(), batch_sampler=self.batches(start))
