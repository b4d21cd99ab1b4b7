"""Images beside the uncached ones: the worst noises are found, differences amplified, latents said to be such."""

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from l2c.report.sample_figure import error_in_words, sample_figure
from l2c.report.samples import SampleRow, differences, pixels, said_of, value_range

REFERENCE = torch.zeros(10, 1, 4, 4)


def shifted(*shifts):
    images = REFERENCE.clone()
    for noise, shift in shifts:
        images[noise] += shift
    return images


def test_the_worst_noises_are_shown_largest_first():
    row = SampleRow.of("m", shifted((7, 0.1), (2, 0.3), (9, 0.2)), REFERENCE, first=2, worst=2)
    assert row.noises == (0, 1, 2, 9)
    assert row.errors == pytest.approx((0, 0, 0.09, 0.04), abs=1e-7)
    assert row.worst == pytest.approx(0.09)
    assert row.mse == pytest.approx((0.01 + 0.09 + 0.04) / 10)


def test_an_image_that_is_not_finite_is_the_worst():
    row = SampleRow.of("m", shifted((3, float("nan")), (4, 9.0)), REFERENCE, first=1, worst=2)
    assert row.noises == (0, 3, 4)
    assert np.isfinite(pixels(row.images)).all()


def test_fewer_images_than_asked_for():
    row = SampleRow.of("m", shifted()[:2], REFERENCE[:2], first=6, worst=3)
    assert row.noises == (0, 1, 0, 1)
    sample_figure([row])


@pytest.mark.parametrize("images", [shifted()[:2], shifted((3, 1e30), (4, 9.0))])
def test_rows_of_few_images_or_huge_errors_come_back(images, tmp_path):
    row = SampleRow.of("m", images, REFERENCE[: len(images)])
    row.save(tmp_path / "row.safetensors")
    back = SampleRow.load(tmp_path / "row.safetensors")
    assert (back.noises, back.num_images) == (row.noises, row.num_images)
    assert np.array_equal(back.errors, row.errors, equal_nan=True)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 1, 4, 4\).*\(9, 1, 4, 4\)"):
        SampleRow.of("m", REFERENCE, REFERENCE[:9])


def test_a_row_comes_back_from_its_file(tmp_path):
    row = SampleRow.of("a \n name", shifted((7, 0.1)), REFERENCE)
    row.save(tmp_path / "row.safetensors")
    back = SampleRow.load(tmp_path / "row.safetensors")
    assert torch.equal(back.images, row.images)
    assert (back.name, back.noises, back.errors, back.mse) == (row.name, row.noises, row.errors, row.mse)


def test_differences_are_ten_times_as_large_and_grey_where_there_is_none():
    row = SampleRow.of("m", shifted((0, 0.05)), REFERENCE, first=2, worst=0)
    assert row.worst is None
    first, second = differences(row)
    assert np.allclose(first, 0.75)
    assert np.allclose(second, 0.5)


def test_latents_are_scaled_and_said():
    latents = 5 * torch.randn(4, 4, 8, 8)
    assert value_range(latents) > 5
    assert value_range(torch.full((4, 3, 8, 8), 7.0)) == 1
    assert pixels(latents, 5)[0].shape == (8, 8, 3)
    assert "4 channels: the first three" in said_of(latents)
    assert said_of(REFERENCE) == ""


def test_the_figure_says_each_error_and_the_worst_noises():
    images = shifted((7, 0.1))
    figure = sample_figure([SampleRow.of("a", images, REFERENCE), SampleRow.of("b", REFERENCE, REFERENCE)], range(10))
    found = "\n".join(text.get_text() for text in figure.findobj(Text))
    assert "MSE 100 x 1e-5" in found
    assert f"worst {error_in_words(0.01)}" in found
    assert "1,000 x 1e-5" in found
    assert "noise 7" in found
    assert "label 5" in found
    assert "difference to the uncached image x 10" in found


def test_rows_of_other_noises_are_refused():
    row = SampleRow.of("a", REFERENCE, REFERENCE)
    with pytest.raises(ValueError, match="same noises"):
        sample_figure([row, SampleRow.of("b", REFERENCE, REFERENCE, first=2)])
    with pytest.raises(ValueError, match="at least one row"):
        sample_figure([])


def test_one_of_several_draws_says_so():
    row = SampleRow.of("random layers", REFERENCE, REFERENCE)
    assert row.drawn_from(1).name == "random layers"
    assert row.drawn_from(5).name == "random layers (one of 5 draws)"
