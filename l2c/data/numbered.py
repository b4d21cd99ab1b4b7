"""Batches of a data set whose items have a number and a draw, in an order that a resumed run goes on in."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from l2c.data.share import parts
from l2c.data.step_sampler import NumberedBatchSampler


def identity_of(data: pl.LightningDataModule) -> dict[str, str]:
    """Return digests of a data module's data by name, which a run that is resumed must share.

    They are what its method `identity` says; of a module that has none, nothing is known.
    """
    identity = getattr(data, "identity", None)
    return {} if identity is None else dict(identity())


class NumberedDataModule(pl.LightningDataModule):
    """Endless batches of the items `(index, draw)` of a data set.

    Args:
        items: the data set.
        count: number of indices.
        batch_size: items per step, over all processes.
        seed: seed of the order.
        num_workers: processes that read items.

    """

    def __init__(self, items: Dataset[Any], count: int, *, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        self.items = items
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader, which begins at the step that the trainer stands at."""
        start = self.trainer.global_step if self.trainer is not None else 0
        sampler = NumberedBatchSampler(
            self.count, self.batch_size, seed=self.seed, start_step=start, parts=parts(self.trainer)
        )
        return DataLoader(
            self.items,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
