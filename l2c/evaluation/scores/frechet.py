"""The Frechet distance between features, added batch by batch, to real ones or to their stored statistics."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class _AsTheyAre(nn.Module):
    """Identity in place of torchmetrics' network: features are computed once for all scores."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Frechet:
    """torchmetrics' Frechet distance on features (N, F); only sums in 64 bits are held.

    Args:
        num_features: F.
        device: device of the sums.

    """

    def __init__(self, num_features: int, device: torch.device | str = "cpu") -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance  # brings torchvision and transformers

        self.num_features = num_features
        self._metric = FrechetInceptionDistance(feature=_AsTheyAre(num_features)).to(device)

    def add(self, features: Tensor, *, real: bool) -> None:
        """Add features (N, F) of real images, or of those to be scored.

        Raises:
            ValueError: if the features have another size than the reference's.

        """
        if features.shape[1] != self.num_features:
            raise ValueError(
                f"the reference has statistics of {self.num_features} features, but these are {features.shape[1]}; "
                "take a reference made with the same features"
            )
        self._metric.update(features, real=real)

    def set_real(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        """Use stored mean (F,) and covariance (F, F) instead of real features.

        Raises:
            ValueError: if the statistics have another size than the features.

        """
        if mean.shape != (self.num_features,) or covariance.shape != (self.num_features,) * 2:
            raise ValueError(
                f"a reference's statistics are (F,) and (F, F), got {mean.shape} and {covariance.shape}; fetch or "
                "make it again"
            )
        metric = self._metric
        mu, sigma = (torch.from_numpy(np.asarray(a, np.float64)).to(metric.device) for a in (mean, covariance))
        # torchmetrics keeps sums and divides by n - 1: those of two samples with this mean and covariance.
        metric.real_features_sum = 2 * mu
        metric.real_features_cov_sum = sigma + 2 * torch.outer(mu, mu)
        metric.real_features_num_samples = torch.tensor(2, device=metric.device)

    def real_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean (F,) and covariance (F, F) of the real features added so far."""
        metric = self._metric
        count = metric.real_features_num_samples
        mean = metric.real_features_sum / count
        covariance = (metric.real_features_cov_sum - count * torch.outer(mean, mean)) / (count - 1)
        return mean.cpu().numpy(), covariance.cpu().numpy()

    def compute(self) -> float:
        """Return the distance."""
        return float(self._metric.compute())
