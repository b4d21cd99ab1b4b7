"""A small convolutional network that reads 8 x 8 digits: labels of samples, features for the Frechet distance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from l2c.backbones.weights import find_checkpoint, load_strict, load_weights

NUM_FEATURES = 64


class DigitsClassifier(nn.Module):
    """Two convolutions, a hidden layer of 64 features, ten logits."""

    num_features = NUM_FEATURES  # torchmetrics' FrechetInceptionDistance reads this

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
            nn.Linear(512, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 64) of images (N, 1, 8, 8) in [-1, 1]."""
        return self.trunk(images)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, 8, 8) in [-1, 1]."""
        return self.head(self(images))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images (N, 1, 8, 8) that are read as their labels (N,)."""
        return float((self.logits(images.clamp(-1, 1)).argmax(dim=1) == labels).float().mean())


def load_digits_classifier(checkpoint: str | Path = "digits_classifier.safetensors") -> DigitsClassifier:
    """Return the bundled classifier in eval mode.

    Raises:
        FileNotFoundError: its weights are not there.
        ValueError: the file is damaged or holds other weights.

    """
    classifier = DigitsClassifier()
    path = find_checkpoint(checkpoint, name="the digits classifier")
    load_strict(classifier, load_weights(path), str(path), name="the digits classifier")
    return classifier.eval().requires_grad_(False)
