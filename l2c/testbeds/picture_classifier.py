"""Base of the testbeds' classifiers: reads samples, and knows the features of the real pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from l2c.backbones.weights import find_checkpoint, load_strict, load_weights


class PictureClassifier(nn.Module, ABC):
    """A trunk that ends in features, and a head of ten logits. C, H and W are those of the pictures.

    Attributes:
        what: the classifier in messages.
        file: its weights in `checkpoints/`.
        num_features: F, which torchmetrics' FrechetInceptionDistance reads.

    """

    what: ClassVar[str]
    file: ClassVar[str]
    num_features: ClassVar[int] = 64
    trunk: nn.Sequential
    head: nn.Linear

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, F) of images (N, C, H, W) in [-1, 1]."""
        return self.trunk(images)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, C, H, W) in [-1, 1]."""
        return self.head(self(images))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images (N, C, H, W) that are read as their labels (N,)."""
        return float((self.logits(images.clamp(-1, 1)).argmax(dim=1) == labels).float().mean())

    @abstractmethod
    def real_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean (F,) and covariance (F, F) of the features of the real pictures, in 64 bits."""

    @classmethod
    def load(cls, checkpoint: str | Path | None = None) -> PictureClassifier:
        """Return the bundled classifier, or one from a file, in eval mode.

        Raises:
            FileNotFoundError: if the weights are missing.
            ValueError: if the file is damaged or holds other weights.

        """
        path = find_checkpoint(str(checkpoint or cls.file), name=cls.what)
        weights = {
            name: value.float() if value.is_floating_point() else value for name, value in load_weights(path).items()
        }
        classifier = cls()
        load_strict(classifier, weights, str(path), name=cls.what)
        return classifier.eval().requires_grad_(False)


@torch.no_grad()
def feature_statistics(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean (F,) and unbiased covariance (F, F) of features (N, F), in 64 bits.

    The weights (N,) count pictures relative to each other.
    """
    features, weights = features.double(), weights.double() / weights.double().sum()
    mean = weights @ features
    centred = features - mean
    return mean, (weights[:, None] * centred).T @ centred / (1 - weights.square().sum())
