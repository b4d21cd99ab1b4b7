"""The 1,797 real 8 x 8 digits of scikit-learn, in [-1, 1]."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from l2c.data.part import parts
from l2c.data.step_sampler import StepBatchSampler

IMAGE_SHAPE = (1, 8, 8)
NUM_CLASSES = 10


def digits() -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, 8, 8) in [-1, 1] and labels (1797,) in 0..9."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float() / 8 - 1
    return images.unsqueeze(1), torch.from_numpy(bunch.target).long()


class DigitsDataModule(pl.LightningDataModule):
    """Endless batches `(x_0, y)` of the digits: (N, 1, 8, 8) in [-1, 1] and (N,) in 0..9.

    Args:
        batch_size: images per step, over all processes.
        seed: seed of the order.

    """

    image_shape = IMAGE_SHAPE
    num_classes = NUM_CLASSES

    def __init__(self, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader, which begins at the step that the trainer stands at."""
        start = self.trainer.global_step if self.trainer is not None else 0
        data = TensorDataset(*digits())
        sampler = StepBatchSampler(
            len(data), self.batch_size, seed=self.seed, start_step=start, parts=parts(self.trainer)
        )
        return DataLoader(data, batch_sampler=sampler)
