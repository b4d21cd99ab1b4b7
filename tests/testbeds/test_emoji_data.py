"""Emoji as batches: how often classes come, what is mirrored and shifted, and that steps repeat."""

import itertools

import pytest
import torch

from l2c.testbeds.emoji import CLASSES
from l2c.testbeds.emoji_data import BalancedBatchSampler, EmojiDataModule, EmojiPictures

FLAG = CLASSES.index("flag")


def batches(module, count):
    return list(itertools.islice(module.train_dataloader(), count))


def test_batches_have_the_shape_and_repeat(pictures):
    first = batches(EmojiDataModule(8, seed=3, pictures=pictures), 3)
    x_0, y = first[0]
    assert (x_0.shape, y.shape) == ((8, 3, 32, 32), (8,))
    assert x_0.min() >= -1
    assert x_0.max() == 1
    for (x, y), (again, labels) in zip(first, batches(EmojiDataModule(8, seed=3, pictures=pictures), 3), strict=True):
        torch.testing.assert_close(x, again, rtol=0, atol=0)
        assert torch.equal(y, labels)
    assert not torch.equal(x_0, batches(EmojiDataModule(8, seed=4, pictures=pictures), 1)[0][0])


def test_a_step_does_not_depend_on_where_a_run_began(pictures):
    module = EmojiDataModule(8, pictures=pictures)
    unbroken = list(itertools.islice(module.batches(0), 5))
    assert list(itertools.islice(module.batches(3), 2)) == unbroken[3:]


def test_classes_come_by_the_square_root_of_their_size():
    labels = torch.cat([torch.full((count,), c) for c, count in enumerate((4, 100, 400))])
    sampler = BalancedBatchSampler(labels, 7000, seed=0)
    drawn = labels[[index for index, _ in next(iter(sampler))]].bincount() / 7000
    torch.testing.assert_close(drawn, torch.tensor([2.0, 10.0, 20.0]) / 32, rtol=0, atol=0.02)


def test_flags_are_never_mirrored_and_all_are_shifted(pictures):
    data = EmojiPictures(pictures, seed=0)
    for label in (0, FLAG):
        index = int((pictures.labels == label).nonzero()[0])
        image = pictures.images[index].float() / 127.5 - 1
        found = set()
        for draw in range(60):
            got, y = data[index, draw]
            assert y == label
            for name, candidate in (("plain", image), ("mirrored", image.flip(-1))):
                for down, right in itertools.product((-1, 0, 1), repeat=2):
                    if torch.equal(got, torch.roll(candidate, (down, right), (1, 2))):
                        found.add((name, down, right))
        assert {name for name, _, _ in found} == ({"plain"} if label == FLAG else {"plain", "mirrored"})
        assert {(down, right) for _, down, right in found} == set(itertools.product((-1, 0, 1), repeat=2))


def test_skin_tones_can_be_left_out(pictures):
    module = EmojiDataModule(4, skin_tones="none", pictures=pictures)
    assert len(module.images()) == int((~pictures.toned).sum())
    with pytest.raises(ValueError, match=r"unknown data.skin_tones 'some'; known are all, none"):
        EmojiDataModule(4, skin_tones="some", pictures=pictures)
