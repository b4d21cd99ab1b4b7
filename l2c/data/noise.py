"""No images at all: noise and labels to start trajectories from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from l2c.data.share import Share, parts
from l2c.io.seeds import Stream, draw_normal


class NoiseBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch `i` is the noise (N, C, H, W) and the labels (N,) of trajectory `i`; it depends on seed and i alone.

    An item `(i, part)` is a part of batch i.
    """

    def __init__(self, shape: tuple[int, int, int], num_labels: int, batch_size: int, seed: int) -> None:
        self.shape = shape
        self.num_labels = num_labels
        self.batch_size = batch_size
        self.seed = seed

    def __getitem__(self, item: int | tuple[int, Share]) -> tuple[Tensor, Tensor]:
        index, part = item if isinstance(item, tuple) else (item, Share())
        noise = draw_normal((self.batch_size, *self.shape), "start of a training trajectory", self.seed, index)
        stream = Stream("labels of a training trajectory", self.seed, index)
        labels = stream.integers(max(self.num_labels, 1), self.batch_size)
        places = part.within(self.batch_size)
        return noise[places], labels[places]


class NoiseDataModule(pl.LightningDataModule):
    """Endless batches of noise and labels, the same one for all the steps of a trajectory.

    Args:
        image_shape: (C, H, W) of the backbone's input.
        num_labels: labels are drawn from 0..num_labels-1.
        steps_per_trajectory: training steps that share a trajectory.
        batch_size: trajectories per step, over all processes.
        seed: seed of noise and labels.
        num_trajectories: number of batches that are visited in turn; None = always new ones.

    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_labels: int,
        steps_per_trajectory: int,
        batch_size: int = 8,
        seed: int = 0,
        num_trajectories: int | None = None,
    ) -> None:
        super().__init__()
        if num_trajectories is not None and num_trajectories < 1:
            raise ValueError(f"data.num_trajectories must be at least 1 or null, got {num_trajectories}")
        self.num_trajectories = num_trajectories
        self.batches = NoiseBatches(image_shape, num_labels, batch_size, seed)
        self.steps_per_trajectory = steps_per_trajectory

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader, which begins at the step that the trainer stands at."""
        start = self.trainer.global_step if self.trainer is not None else 0
        order = _TrajectoryOfStep(start, self.steps_per_trajectory, parts(self.trainer), self.num_trajectories)
        return DataLoader(self.batches, batch_size=None, sampler=order)


class _TrajectoryOfStep:
    """Yield the number of the trajectory that each training step belongs to, and each part, without end."""

    def __init__(
        self,
        start_step: int,
        steps_per_trajectory: int,
        of_step: Sequence[Share],
        num_trajectories: int | None = None,
    ) -> None:
        self.num_trajectories = num_trajectories
        self.start_step = start_step
        self.steps_per_trajectory = steps_per_trajectory
        self.of_step = of_step

    def __iter__(self) -> Iterator[tuple[int, Share]]:
        step = self.start_step
        while True:
            trajectory = step // self.steps_per_trajectory
            if self.num_trajectories is not None:
                trajectory %= self.num_trajectories
            for part in self.of_step:
                yield trajectory, part
            step += 1
