"""A small convolutional network that reads 32 x 32 emoji: labels of samples, features for the Frechet distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2c.testbeds.emoji import CLASSES, Emoji
from l2c.testbeds.picture_classifier import PictureClassifier, feature_statistics

WIDTHS = (32, 64, 96, 96)


class EmojiClassifier(PictureClassifier):
    """Four convolutions, each halving the sides, a hidden layer of 64 features, ten logits.

    Images are (N, 3, 32, 32). The statistics of the real pictures travel with the weights, so that the Frechet
    distance needs no pictures; each class counts alike in them, as labels of samples go round.
    """

    what = "the emoji classifier"
    file = "emoji_classifier.safetensors"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, width in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        features = [nn.Dropout(0.5), nn.Linear(4 * WIDTHS[-1], self.num_features), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), *features)  # (N, 384) before the features
        self.head = nn.Linear(self.num_features, len(CLASSES))
        self.register_buffer("real_mean", torch.zeros(self.num_features))
        self.register_buffer("real_covariance", torch.eye(self.num_features))

    def real_statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and covariance that were kept; see `PictureClassifier`."""
        return self.get_buffer("real_mean").double(), self.get_buffer("real_covariance").double()

    @torch.no_grad()
    def keep_statistics(self, pictures: Emoji) -> None:
        """Keep the statistics of features of the real pictures, in eval mode."""
        features = torch.cat([self(part.float() / 127.5 - 1) for part in pictures.images.split(256)])
        share = 1 / pictures.labels.bincount(minlength=len(CLASSES)).clamp_min(1)
        mean, covariance = feature_statistics(features, share[pictures.labels])
        self.get_buffer("real_mean").copy_(mean)
        self.get_buffer("real_covariance").copy_(covariance)
