"""Distances of images from the uncached ones, and of a set of images from real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from l2c.evaluation.scores.frechet import Frechet
from l2c.sampling.image_error import squared_errors, standard_error


@dataclass(frozen=True)
class ImageError:
    """Error of images against the uncached ones from the same noise.

    Attributes:
        mse: mean squared error per pixel, averaged over images.
        mse_standard_error: its standard error over images.
        mse_p99: the error that 99 % of the images stay under.
        psnr: peak signal-to-noise ratio in dB of the mean squared error.
        num_images: number N of images.

    """

    mse: float
    mse_standard_error: float
    mse_p99: float
    psnr: float
    num_images: int


def image_error(images: Tensor, target: Tensor, *, data_range: float = 2.0) -> ImageError:
    """Compare images (N, C, H, W) with a target of the same shape, from the same noise.

    Args:
        images: images of a method.
        target: images of the uncached sampler.
        data_range: largest minus smallest value of an image, for the PSNR: 2 for pixels in [-1, 1].

    """
    if images.shape != target.shape:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, their target {tuple(target.shape)}; draw both from one noise"
        )
    per_image = squared_errors(images, target).cpu()
    mse = per_image.mean()
    psnr = float(10 * torch.log10(data_range**2 / mse))  # infinite where both are equal
    p99 = float(per_image.quantile(0.99))
    return ImageError(float(mse), standard_error(per_image), p99, psnr, len(per_image))


class Reader(Protocol):
    """A classifier that reads samples, and knows the features of real pictures.

    Attributes:
        num_features: F.

    """

    @property
    def num_features(self) -> int:
        """Number of features F."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, F) of images (N, C, H, W) in [-1, 1]."""

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images (N, C, H, W) that are read as their labels (N,)."""

    def real_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean (F,) and covariance (F, F) of the features of real pictures."""


@torch.no_grad()
def frechet_distance(images: Tensor, reader: Reader) -> float:
    """Return the Frechet distance between features of images (N, C, H, W) and of the reader's real pictures."""
    distance = Frechet(reader.num_features)
    distance.set_real(*(value.numpy() for value in reader.real_statistics()))
    distance.add(reader(images.clamp(-1, 1)), real=False)
    return distance.compute()
