"""Features of 8-bit images by a network, on which scores of image sets are computed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from l2c.backbones.weights import find_checkpoint, load_weights
from l2c.io.lazy import needed

SPATIAL_CHANNELS = 7  # ADM takes the first 7 of 192, which makes 7 x 17 x 17 = 2,023 features
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_FILE = INCEPTION_URL.rpartition("/")[2]


@dataclass(frozen=True)
class ImageFeatures:
    """Features of N images.

    Attributes:
        pooled: (N, F), for the Frechet distance, precision and recall.
        spatial: (N, S), feature maps that still know where, flattened, for the spatial Frechet distance.
        logits: (N, K), for the Inception score.

    """

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


def spatial(maps: Tensor) -> Tensor:
    """Return the first maps of (N, C, H, W) as (N, H * W * 7), channels innermost as in ADM's statistics."""
    return maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()


class FeatureExtractor(Protocol):
    """Anything that turns images into features.

    Attributes:
        name: which one; scores by different extractors do not compare.
        channels: channels of the images that it reads.

    """

    name: str
    channels: int

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Return the features of images (N, C, H, W) of 8 bits, on their device."""


class Classifier(Protocol):
    """A classifier of digits whose layers can be read; see `testbeds.digits_classifier`."""

    trunk: nn.Sequential
    head: nn.Linear

    def to(self, device: torch.device) -> Any:
        """Move to a device."""


class DigitsFeatures:
    """A classifier of digits: 64 features, 7 maps of 4 x 4, ten logits.

    Args:
        classifier: trunk and head.

    """

    name = "digits"
    channels = 1

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        """Return the features of images (N, 1, 8, 8) of 8 bits."""
        classifier = self.classifier.to(images.device)
        *early, _, _, _ = classifier.trunk  # without flatten and the hidden layer
        maps = nn.Sequential(*early)(images.float() / 127.5 - 1)  # (N, 32, 4, 4)
        pooled = classifier.trunk[-3:](maps)
        return ImageFeatures(pooled, spatial(maps), classifier.head(pooled))


class InceptionFeatures:
    """Inception-v3 with the weights of 2015-12-05, as FID is defined, by torch-fidelity.

    Pooled: 2,048 features. Spatial: the first 7 maps of Mixed_6d, which TensorFlow's graph calls mixed_6/conv and ADM
    takes for sFID. Logits: without bias. Images are scaled to 299 x 299 as TensorFlow 1 does.

    Args:
        weights: a local file of the published weights; None = that name in `checkpoints/`.

    Raises:
        FileNotFoundError: if the weights are missing; the message says where they are published.
        ValueError: if torch-fidelity is not installed, or the file is damaged or holds other weights.

    """

    name = "inception"
    channels = 3

    def __init__(self, weights: str | Path | None = None) -> None:
        path = find_checkpoint(
            weights or INCEPTION_FILE, name="Inception-v3", url=INCEPTION_URL, remedy="inception=PATH"
        )
        plain = io.BytesIO()  # of a safe load: torch-fidelity's own would run a pickle's code
        torch.save(load_weights(path), plain)
        plain.seek(0)
        with needed("torch_fidelity", "features=inception needs", "evaluation"):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=plain
            )
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not hold the weights of Inception-v3 as torch-fidelity publishes them; "
                f"fetch {INCEPTION_URL}"
            ) from error
        self._maps = torch.empty(0)
        self.network.Mixed_6d.register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._maps = output

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        """Return the features of images (N, 3, H, W) of 8 bits."""
        pooled, logits = self.network.to(images.device)(images)
        return ImageFeatures(pooled, spatial(self._maps), logits)
