"""The share of a step's batch that one process sees at a time."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` equal parts of a step's global batch.

    A step's batch is that of all processes and of all its accumulated parts together, and every random number
    belongs to a place in it, so that a run does not depend on how many share the work.
    """

    index: int = 0
    count: int = 1

    def within(self, batch_size: int) -> slice:
        """Return the places of this part in a global batch.

        Raises:
            ValueError: the batch cannot be split evenly.

        """
        size, rest = divmod(batch_size, self.count)
        if rest or not size:
            raise ValueError(
                f"data.batch_size={batch_size} is the batch of all processes and accumulated parts and cannot be "
                f"split into {self.count} equal ones; take a multiple of {self.count}"
            )
        return slice(self.index * size, (self.index + 1) * size)


def parts(trainer: pl.Trainer | None) -> tuple[Part, ...]:
    """Return this process's parts of a step, in the order in which they are accumulated."""
    if trainer is None:
        return (Part(),)
    repeats, world, rank = trainer.accumulate_grad_batches, trainer.world_size, trainer.global_rank
    return tuple(Part(i * world + rank, repeats * world) for i in range(repeats))
