"""The digits and the noise: ranges, shapes, and batches that depend on the step alone."""

import itertools

import pytest
import torch

from l2c.data.noise import NoiseDataModule
from l2c.testbeds.digits import digits


def test_digits_are_all_there_and_scaled():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.min() == -1
    assert images.max() == 1
    assert labels.unique().tolist() == list(range(10))


def test_noise_is_shared_by_the_steps_of_a_trajectory():
    data = NoiseDataModule((1, 4, 4), 10, steps_per_trajectory=3, batch_size=2, seed=5)
    batches = list(itertools.islice(data.train_dataloader(), 6))
    noise = [noise for noise, _ in batches]
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[2], noise[3])
    assert torch.equal(noise[3], noise[5])
    assert all(labels.max() < 10 and labels.shape == (2,) for _, labels in batches)


def test_a_limited_number_of_trajectories_comes_round():
    data = NoiseDataModule((1, 4, 4), 10, steps_per_trajectory=2, batch_size=2, seed=5, num_trajectories=2)
    noise = [noise for noise, _ in itertools.islice(data.train_dataloader(), 6)]
    assert torch.equal(noise[0], noise[4])
    assert not torch.equal(noise[0], noise[2])
    with pytest.raises(ValueError, match=r"data\.num_trajectories must be at least 1 or null, got 0"):
        NoiseDataModule((1, 4, 4), 10, steps_per_trajectory=2, num_trajectories=0)
