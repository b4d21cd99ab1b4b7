"""No images at all: noise and labels to start trajectories from."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from l2c.seeding import draw_normal, make_generator


class NoiseBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch `i` is the noise (N, C, H, W) and the labels (N,) of trajectory `i`; it depends on seed and i alone."""

    def __init__(self, shape: tuple[int, int, int], num_labels: int, batch_size: int, seed: int) -> None:
        self.shape = shape
        self.num_labels = num_labels
        self.batch_size = batch_size
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = draw_normal((self.batch_size, *self.shape), "start of a training trajectory", self.seed, index)
        generator = make_generator("labels of a training trajectory", self.seed, index)
        return noise, torch.randint(max(self.num_labels, 1), (self.batch_size,), generator=generator)


class NoiseDataModule(pl.LightningDataModule):
    """Endless batches of noise and labels, the same one for all the steps of a trajectory.

    Args:
        image_shape: (C, H, W) of the backbone's input.
        num_labels: labels are drawn from 0..num_labels-1.
        steps_per_trajectory: training steps that share a trajectory.
        batch_size: trajectories per step.
        seed: seed of noise and labels.

    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_labels: int,
        steps_per_trajectory: int,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batches = NoiseBatches(image_shape, num_labels, batch_size, seed)
        self.steps_per_trajectory = steps_per_trajectory

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader, which begins at the step that the trainer stands at."""
        start = self.trainer.global_step if self.trainer is not None else 0
        return DataLoader(self.batches, batch_size=None, sampler=_TrajectoryOfStep(start, self.steps_per_trajectory))


class _TrajectoryOfStep:
    """Yield the number of the trajectory that each training step belongs to, without end."""

    def __init__(self, start_step: int, steps_per_trajectory: int) -> None:
        self.start_step = start_step
        self.steps_per_trajectory = steps_per_trajectory

    def __iter__(self):  # type: ignore[no-untyped-def]
        step = self.start_step
        while True:
            yield step // self.steps_per_trajectory
            step += 1
