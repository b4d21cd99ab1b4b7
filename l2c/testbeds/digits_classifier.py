"""A small convolutional network that reads 8 x 8 digits: labels of samples, features for the Frechet distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2c.testbeds.digits import digits
from l2c.testbeds.picture_classifier import PictureClassifier, feature_statistics


class DigitsClassifier(PictureClassifier):
    """Two convolutions, a hidden layer of 64 features, ten logits; images are (N, 1, 8, 8)."""

    what = "the digits classifier"
    file = "digits_classifier.safetensors"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (N, 64, 4, 4)
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),  # (N, 512)
            nn.Linear(512, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, 10)

    @torch.no_grad()
    def real_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the features of all digits; see `PictureClassifier`."""
        images, _ = digits()
        return feature_statistics(self(images), torch.ones(len(images)))
