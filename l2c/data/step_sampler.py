"""Batches addressed by training step, so that a resumed run sees what the unbroken one would have seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from l2c.data.share import Share
from l2c.io.seeds import Stream


class StepBatchSampler:
    """Yield batches of item indices without end: a fresh permutation of all items per epoch.

    Which items a step gets depends on the seed and the step's number alone.

    Args:
        num_items: size of the dataset.
        batch_size: items per step; may exceed the dataset's size.
        seed: seed of the permutations.
        start_step: the first step to yield.
        parts: the parts of each step's batch to yield, one after the other.

    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        parts: Sequence[Share] = (Share(),),
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(
                f"a sampler of steps must have at least one item and batches of at least one, got {num_items} and "
                f"{batch_size}; check the data and batch_size"
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.slices = [part.within(batch_size) for part in parts]

    def _epoch(self, epoch: int) -> list[int]:
        return Stream("order of an epoch's items", self.seed, epoch).permutation(self.num_items).tolist()

    def items(self, batch: list[int], step: int, places: slice) -> list[Any]:
        """Return the dataset's keys for some places of a step's batch of indices."""
        return batch[places]

    def indices(self) -> Iterator[list[int]]:
        """Yield the indices of each step's batch, from the first step on, without end."""
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

    def __iter__(self) -> Iterator[list[Any]]:
        for step, batch in enumerate(self.indices(), self.start_step):
            for places in self.slices:
                yield self.items(batch, step, places)


class NumberedBatchSampler(StepBatchSampler):
    """Yield items `(index, draw)`, draw being the number of the sample in the run: a seed of its own."""

    def items(self, batch: list[int], step: int, places: slice) -> list[Any]:
        """Return indices with their draws."""
        return [(index, step * self.batch_size + places.start + i) for i, index in enumerate(batch[places])]
