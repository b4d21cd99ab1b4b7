"""Errors and distances with known answers."""

import math

import pytest
import torch

from l2c.evaluation.metrics import frechet_distance, image_error


def test_error_in_closed_form():
    reference = torch.zeros(2, 1, 2, 2)
    images = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.3)])
    error = image_error(images, reference)
    assert error.mse == pytest.approx((0.01 + 0.09) / 2)
    assert error.mse_standard_error == pytest.approx(0.04)  # std of (0.01, 0.09) is 0.0566, over sqrt(2)
    assert error.mse_p99 == pytest.approx(0.01 + 0.99 * 0.08)  # between the two
    assert error.psnr == pytest.approx(10 * math.log10(4 / 0.05), rel=1e-5)
    assert error.num_images == 2


def test_equal_images_have_no_error():
    images = torch.randn(3, 1, 2, 2)
    error = image_error(images, images.clone())
    assert error.mse == 0
    assert math.isinf(error.psnr)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 2\)"):
        image_error(torch.zeros(2, 1, 2, 2), torch.zeros(3, 1, 2, 2))


class Flat(torch.nn.Module):
    """Pixels are features."""

    num_features = 4

    def __init__(self, real: torch.Tensor) -> None:
        super().__init__()
        self.real = real

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()

    def real_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self(self.real).mean(0), self(self.real).T.cov()


def test_frechet_distance_of_shifted_images_is_the_squared_shift():
    real = torch.rand(400, 1, 2, 2) * 0.5
    assert frechet_distance(real, Flat(real)) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(real + 0.25, Flat(real)) == pytest.approx(4 * 0.25**2, rel=1e-3)
