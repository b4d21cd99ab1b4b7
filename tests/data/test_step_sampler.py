"""Batches addressed by training step: a resumed run sees what the unbroken one would have seen."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from l2c.data.noise import NoiseDataModule
from l2c.data.step_sampler import StepBatchSampler
from l2c.testbeds.digits import digits


def steps(first, last, num_items=10, batch_size=4, seed=0):
    return list(islice(StepBatchSampler(num_items, batch_size, seed=seed, start_step=first), last - first))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 23])
def test_any_step_continues_identically(batch_size):
    unbroken = steps(0, 30, batch_size=batch_size)
    for start in range(30):
        assert steps(start, 30, batch_size=batch_size) == unbroken[start:]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23])
def test_each_epoch_is_a_permutation(batch_size):
    items = [item for batch in steps(0, 40, batch_size=batch_size) for item in batch]
    epochs = [items[i : i + 10] for i in range(0, len(items) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert all(len(batch) == batch_size for batch in steps(0, 40, batch_size=batch_size))


def test_seed_decides_the_order():
    assert steps(0, 5, seed=0) == steps(0, 5, seed=0)
    assert steps(0, 5, seed=0) != steps(0, 5, seed=1)


@pytest.mark.parametrize(("num_items", "batch_size"), [(0, 4), (10, 0)])
def test_empty_batches_are_refused(num_items, batch_size):
    with pytest.raises(ValueError, match=f"got {num_items} and {batch_size}"):
        StepBatchSampler(num_items, batch_size, seed=0)


def test_noise_batches_are_shared_by_a_trajectorys_steps():
    loader = NoiseDataModule((1, 8, 8), 10, steps_per_trajectory=3, batch_size=2, seed=5).train_dataloader()
    batches = list(islice(loader, 7))
    for step, (noise, labels) in enumerate(batches):
        assert noise.shape == (2, 1, 8, 8)
        assert labels.shape == (2,)
        for other in range(step):
            assert torch.equal(noise, batches[other][0]) == (other // 3 == step // 3)


def test_digits_are_scaled_to_one():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert labels.unique().tolist() == list(range(10))
