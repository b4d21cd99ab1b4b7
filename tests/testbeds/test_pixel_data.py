"""Data sets by name: which fit a backbone, and which settings they have."""

import itertools

import pytest
import torch
from PIL import Image

from l2c.testbeds.digits_data import DigitsDataModule
from l2c.testbeds.pixel_data import pixel_data

FITTING = {"num_labels": 10, "batch_size": 4, "seed": 0}


def test_data_that_does_not_fit_is_refused():
    assert isinstance(pixel_data("digits", image_shape=(1, 8, 8), **FITTING), DigitsDataModule)
    with pytest.raises(ValueError, match=r"data=digits has images .* take data=noise"):
        pixel_data("digits", image_shape=(3, 32, 32), **FITTING)
    with pytest.raises(ValueError, match="'digit' is no data set of pixels; known are digits, emoji and folder"):
        pixel_data("digit", image_shape=(1, 8, 8), **FITTING)
    with pytest.raises(ValueError, match="data=digits has no setting 'skin_tones'; its settings are: none"):
        pixel_data("digits", image_shape=(1, 8, 8), **FITTING, skin_tones="all")


def test_pictures_that_are_not_there_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("L2C_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"download-emoji.* take data=noise"):
        pixel_data("emoji", image_shape=(3, 32, 32), **FITTING, skin_tones="none")


def test_a_folder_of_images(tmp_path):
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        (tmp_path / name).mkdir()
        image = Image.new("RGB", (40, 24), colour)
        image.paste((0, 0, 0), (8, 0, 16, 24))  # a bar on the left
        image.save(tmp_path / name / "1.png")
    fitting = {"image_shape": (3, 8, 8), "num_labels": 2, "batch_size": 4, "seed": 0}
    data = pixel_data("folder", **fitting, folder=tmp_path)
    images, labels = zip(*itertools.islice(data.train_dataloader(), 4), strict=True)
    assert images[0].shape == (4, 3, 8, 8)
    reds = torch.cat(images)[torch.cat(labels) == 0]
    assert {tuple((red[0, 4, [2, 5]] > 0).tolist()) for red in reds} == {(False, True), (True, False)}  # mirrored
    with pytest.raises(ValueError, match=r"has 2 sub-folders, .* 10 labels; say model.args.num_classes=2"):
        pixel_data("folder", **{**fitting, "num_labels": 10}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"square images of three channels, .* \(1, 8, 8\)"):
        pixel_data("folder", **{**fitting, "image_shape": (1, 8, 8)}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"takes one setting, got none; say \+dataset_options.folder=PATH"):
        pixel_data("folder", **fitting)
    with pytest.raises(FileNotFoundError, match="no image folder"):
        pixel_data("folder", **fitting, folder=tmp_path / "nowhere")
