"""The share of the work that is one process's: of a step's batch, of a folder's shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import lightning.pytorch as pl

from l2c.data.processes import this_place


@dataclass(frozen=True)
class Share:
    """Share `index` of `count` equal shares of a step's global batch.

    A step's batch is that of all processes and of all its accumulated parts together, and every random number
    belongs to a place in it, so that a run does not depend on how many share the work.
    """

    index: int = 0
    count: int = 1

    def within(self, batch_size: int) -> slice:
        """Return the places of this part in a global batch.

        Raises:
            ValueError: if the batch cannot be split evenly.

        """
        size, rest = divmod(batch_size, self.count)
        if rest or not size:
            raise ValueError(
                f"data.batch_size={batch_size} is the batch of all processes and accumulated parts and cannot be "
                f"split into {self.count} equal ones; take a multiple of {self.count}"
            )
        return slice(self.index * size, (self.index + 1) * size)

    def of(self, numbers: Iterable[int]) -> list[int]:
        """Return the numbers (of shards, say) assigned to this part.

        A number's part depends on the number alone, so that processes which list a folder at different times never
        take the same one.
        """
        return [k for k in numbers if k % self.count == self.index]


def this_process() -> tuple[Share, int]:
    """Return this process as its part of all that a launcher started, and its number on its machine.

    For work that needs no communication; a process that was started by itself is the only part, number 0.

    Raises:
        ValueError: if the launcher's environment variables are wrong.

    """
    place = this_place()
    return Share(place.rank, place.count), place.local_rank


def parts(trainer: pl.Trainer | None) -> tuple[Share, ...]:
    """Return this process's parts of a step, in the order in which they are accumulated."""
    if trainer is None:
        return (Share(),)
    repeats, world, rank = trainer.accumulate_grad_batches, trainer.world_size, trainer.global_rank
    return tuple(Share(i * world + rank, repeats * world) for i in range(repeats))
