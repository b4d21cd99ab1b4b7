"""Crops of photographs: ranges, places that depend on the draw alone, batches that depend on the step alone."""

import itertools

import pytest
import torch

from l2c.testbeds.photos import PhotoCrops, PhotosDataModule, photos
from l2c.testbeds.pixel_data import pixel_data


def test_photographs_are_shrunk_by_means():
    images = photos()
    assert [tuple(image.shape) for image in images] == [(3, 106, 160)] * 2
    assert all(-1 <= image.min() < image.max() <= 1 for image in images)


def test_a_crop_is_a_place_of_its_photograph_mirrored_or_not():
    crops = PhotoCrops(seed=3)
    places = crops.images[1].unfold(1, 32, 1).unfold(2, 32, 1)  # (3, top, left, 32, 32)

    def found(crop):
        return bool((places == crop[:, None, None]).all(dim=(0, 3, 4)).any())

    drawn = [crops[1, draw] for draw in range(8)]
    assert all(label == 1 for _, label in drawn)
    plain = [found(crop) for crop, _ in drawn]
    assert 0 < sum(plain) < 8
    assert all(found(crop.flip(-1)) for (crop, _), is_plain in zip(drawn, plain, strict=True) if not is_plain)
    assert torch.equal(crops[1, 5][0], PhotoCrops(seed=3)[1, 5][0])
    assert not torch.equal(crops[1, 5][0], PhotoCrops(seed=4)[1, 5][0])


def test_batches_depend_on_the_step_alone():
    whole = list(itertools.islice(PhotosDataModule(4, seed=1).train_dataloader(), 3))
    again = next(itertools.islice(PhotosDataModule(4, seed=1).train_dataloader(), 2, None))
    assert torch.equal(whole[2][0], again[0])
    assert not torch.equal(whole[0][0], whole[1][0])
    assert whole[0][0].shape == (4, 3, 32, 32)
    assert sorted(whole[0][1].tolist()) == [0, 0, 1, 1]


def test_data_that_does_not_fit_is_refused():
    fitting = {"num_labels": 2, "batch_size": 4, "seed": 0}
    assert isinstance(pixel_data("photos", image_shape=(3, 32, 32), **fitting), PhotosDataModule)
    with pytest.raises(ValueError, match=r"data=photos has images .* take data=noise"):
        pixel_data("photos", image_shape=(1, 8, 8), **fitting)
    with pytest.raises(ValueError, match="known are digits, photos"):
        pixel_data("fotos", image_shape=(3, 32, 32), **fitting)
