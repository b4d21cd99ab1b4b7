"""A folder of images, cropped, flipped and encoded on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from l2c.data.image_folder import ImageFolder
from l2c.data.numbered import NumberedDataModule
from l2c.data.vae import SCALE_TOLERANCE, Vae, draw_latents, vae_digest
from l2c.io.seeds import Stream


class _Views(Dataset[tuple[Tensor, int, int]]):
    """Item `(index, draw)` is an image, mirrored or not as the draw says, its label, and the draw."""

    def __init__(self, images: ImageFolder, seed: int) -> None:
        self.images = images
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        index, draw = item
        image, label = self.images.read_next(index)
        mirrored = bool(Stream("mirroring", self.seed, draw).uniform() < 0.5)
        return (image.flip(-1) if mirrored else image), label, draw


class ImageNetDataModule(NumberedDataModule):
    """Endless batches `(x_0, y)` of latents (N, C, H, W), encoded on the training device, and labels (N,).

    Args:
        folder: one sub-folder of images per class.
        vae: the autoencoder.
        image_shape: (C, H, W) of the backbone's input; images are 8 times as high and wide.
        num_labels: labels of the backbone.
        vae_scale: the scale that the backbone was trained with.
        batch_size: images per step, over all processes.
        seed: seed of order, flips and samples.
        num_workers: processes that read images.

    Raises:
        FileNotFoundError, ValueError: there are no images, or they or the VAE do not fit.

    """

    def __init__(
        self,
        folder: str | Path,
        vae: Vae,
        *,
        image_shape: tuple[int, int, int],
        num_labels: int,
        vae_scale: float,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        images = ImageFolder(folder, 8 * image_shape[1])
        if images.num_classes > num_labels:
            raise ValueError(
                f"{folder} has {images.num_classes} classes, but the backbone knows {num_labels}; take the "
                "images that it was trained on"
            )
        if abs(vae.scale - vae_scale) > SCALE_TOLERANCE:
            raise ValueError(
                f"the VAE has the scale {vae.scale:g}, but data.vae_scale is {vae_scale:g}; take the backbone's VAE"
            )
        items = _Views(images, seed)
        super().__init__(items, len(images), batch_size=batch_size, seed=seed, num_workers=num_workers)
        self.images = images
        self.vae = vae

    def identity(self) -> dict[str, str]:
        """Return digests of the images and of the autoencoder."""
        return {"images_digest": self.images.digest(), "vae_digest": vae_digest(self.vae)}

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Encode images (N, 3, H, W) into samples of their latents."""
        images, labels, draws = batch
        mean, std = self.vae.encode(images)
        return draw_latents(mean, std, self.vae.scale, draws.tolist(), self.seed), labels
