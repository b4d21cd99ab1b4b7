"""Pre-encoded latents: no images, no autoencoder, a new sample of each posterior at every visit."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from l2c.data.latent_shards import LatentShards
from l2c.data.numbered import NumberedDataModule
from l2c.data.vae import SCALE_TOLERANCE, draw_latents
from l2c.io.digests import digest_of_files


class _Samples(Dataset[tuple[Tensor, Tensor]]):
    """Item `(index, draw)` is the sample that this draw takes of that posterior."""

    def __init__(self, shards: LatentShards, seed: int) -> None:
        self.shards = shards
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, draw = item
        mean, std, label = self.shards[index]
        return draw_latents(mean[None], std[None], self.shards.manifest.scale, [draw], self.seed)[0], label


class LatentsDataModule(NumberedDataModule):
    """Endless batches `(x_0, y)` of latents: (N, C, H, W), scaled as the backbone wants them, and (N,).

    Args:
        folder: written by `l2c encode`.
        image_shape: (C, H, W) of the backbone's input.
        num_labels: labels of the backbone.
        vae_scale: the scale that the backbone was trained with.
        batch_size: latents per step, over all processes.
        seed: seed of the order and of the samples.
        num_workers: processes that read.

    Raises:
        FileNotFoundError, ValueError: there are no such latents, or they were made for something else.

    """

    def __init__(
        self,
        folder: str | Path,
        *,
        image_shape: tuple[int, int, int],
        num_labels: int,
        vae_scale: float,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        shards = LatentShards(folder)
        manifest = shards.manifest
        if manifest.shape != tuple(image_shape):
            raise ValueError(
                f"the latents in {folder} have shape {manifest.shape} (images of {manifest.image_size}), but the "
                f"backbone takes {tuple(image_shape)}; encode the images at its resolution"
            )
        if abs(manifest.scale - vae_scale) > SCALE_TOLERANCE:
            raise ValueError(
                f"the latents in {folder} were made for the VAE scale {manifest.scale:g} ({manifest.vae}), but "
                f"data.vae_scale is {vae_scale:g}; encode them with the backbone's VAE"
            )
        if manifest.num_classes > num_labels:
            raise ValueError(
                f"the latents in {folder} have {manifest.num_classes} classes, but the backbone knows {num_labels}; "
                "take the images that it was trained on"
            )
        items = _Samples(shards, seed)
        super().__init__(items, len(shards), batch_size=batch_size, seed=seed, num_workers=num_workers)
        self.shards = shards

    def identity(self) -> dict[str, str]:
        """Return a digest of the manifest and of the shards' files."""
        manifest, folder = self.shards.manifest, self.shards.folder
        paths = [folder / manifest.FILE, *(manifest.path(folder, k) for k in range(manifest.num_shards))]
        return {"latents_digest": digest_of_files([(path.name, path) for path in paths])}
