"""Data sets by name: which fit a backbone, and which settings they have."""

import pytest

from l2c.testbeds.digits import DigitsDataModule
from l2c.testbeds.pixel_data import pixel_data

FITTING = {"num_labels": 10, "batch_size": 4, "seed": 0}


def test_data_that_does_not_fit_is_refused():
    assert isinstance(pixel_data("digits", image_shape=(1, 8, 8), **FITTING), DigitsDataModule)
    with pytest.raises(ValueError, match=r"data=digits has images .* take data=noise"):
        pixel_data("digits", image_shape=(3, 32, 32), **FITTING)
    with pytest.raises(ValueError, match="'digit' is no data set of pixels; known are digits, emoji"):
        pixel_data("digit", image_shape=(1, 8, 8), **FITTING)
    with pytest.raises(ValueError, match="data=digits has no setting 'skin_tones'; its settings are: none"):
        pixel_data("digits", image_shape=(1, 8, 8), **FITTING, skin_tones="all")


def test_pictures_that_are_not_there_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("L2C_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"download_emoji\.py.* take data=noise"):
        pixel_data("emoji", image_shape=(3, 32, 32), **FITTING, skin_tones="none")
