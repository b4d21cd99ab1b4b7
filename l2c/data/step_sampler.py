"""Batches addressed by training step, so that a resumed run sees what the unbroken one would have seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class StepBatchSampler:
    """Yield batches of item indices without end: a fresh permutation of all items per epoch.

    Which items a step gets depends on the seed and the step's number alone.

    Args:
        num_items: size of the dataset.
        batch_size: items per step; may exceed the dataset's size.
        seed: seed of the permutations.
        start_step: the first step to yield.

    """

    def __init__(self, num_items: int, batch_size: int, *, seed: int, start_step: int = 0) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"need at least one item and a batch of one, got {num_items} and {batch_size}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step

    def _epoch(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (epoch + 1))
        return torch.randperm(self.num_items, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        epoch, offset = divmod(self.start_step * self.batch_size, self.num_items)
        order = self._epoch(epoch)
        while True:
            batch: list[int] = []
            while len(batch) < self.batch_size:
                if offset == self.num_items:
                    epoch, offset = epoch + 1, 0
                    order = self._epoch(epoch)
                taken = order[offset : offset + self.batch_size - len(batch)]
                batch += taken
                offset += len(taken)
            yield batch
