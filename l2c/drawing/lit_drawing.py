"""The Lightning module that draws many images: each process whole shards, each image from noise of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from l2c.data.share import Share
from l2c.data.vae import Vae
from l2c.drawing.image_shards import Samples, to_pixels
from l2c.io.seeds import Stream
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.inputs import check_images
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.settings import prepare


def image_labels(images: range, num_labels: int, kind: str, seed: int) -> Tensor | None:
    """Return the labels (N,) of some images, which depend on their numbers alone; None without labels.

    Args:
        images: the numbers.
        num_labels: labels are 0..num_labels-1.
        kind: `balanced` goes round, `random` draws each.
        seed: seed of the draws.

    """
    if kind == "balanced" or not num_labels:
        return labels_in_turn(num_labels, len(images), first=images.start)
    return torch.cat([Stream("label of an image", seed, i).integers(num_labels, 1) for i in images])


class ShardsToDraw(pl.LightningDataModule):
    """The batches of the shards that a process still has to draw, as (shard, first image, image after the last).

    Shards belong to processes by their number and batches begin at fixed places in them, so that neither the number
    of processes nor a kill changes what is drawn together.

    Args:
        samples: the manifest of the folder.
        folder: the folder.
        batch_size: images at a time.

    """

    def __init__(self, samples: Samples, folder: Path, batch_size: int) -> None:
        super().__init__()
        self.samples = samples
        self.folder = folder
        self.batch_size = batch_size
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may have no shard left to draw

    def predict_dataloader(self) -> DataLoader[tuple[int, int, int]]:
        """Return the loader of this process."""
        trainer = self.trainer
        part = Share() if trainer is None else Share(trainer.global_rank, trainer.world_size)
        batches = [
            (k, start, min(start + self.batch_size, images.stop))
            for k in part.of(self.samples.missing(self.folder))
            for images in (self.samples.images_of(k),)
            for start in range(images.start, images.stop, self.batch_size)
        ]
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]


def _as_it_is(item: Any) -> Any:
    return item


class LitSampler(pl.LightningModule):
    """Draw images batch by batch and write each shard when its last one is there.

    Args:
        sampler: draws images or latents.
        samples: the manifest of the folder.
        folder: the folder.
        seed: seed of noise and labels.
        labels: `balanced` or `random`, see `image_labels`.
        vae: turns latents into images; None where the backbone gives images.
        fixed_batch: images of every batch that the sampler is given: a shard's last one is filled up with the
            images that would come next, which are dropped. For compiled and captured samplers, which are made for
            one size; None = batches are drawn as they come.
        settings: `compile` and `capture`, see `sampling.settings.prepare`; both are for `fixed_batch` images.

    """

    def __init__(
        self,
        sampler: Sampler,
        samples: Samples,
        folder: Path,
        *,
        seed: int,
        labels: str,
        vae: Vae | None = None,
        fixed_batch: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.backbone = sampler.backbone  # a submodule, so that Lightning moves it to the device
        self.samples = samples
        self.folder = folder
        self.seed = seed
        self.labels = labels
        self.vae = vae
        self.fixed_batch = fixed_batch
        self.settings = settings or {}
        self.num_drawn = 0
        self._pixels: list[Tensor] = []

    def on_predict_start(self) -> None:
        """Compile and capture, now that the backbone is on its device."""
        if self.fixed_batch is not None:
            prepare(self.sampler, self.fixed_batch, self.settings, progress=self.global_rank == 0)

    def predict_step(self, batch: tuple[int, int, int], batch_index: int) -> None:
        """Draw the images of a batch."""
        shard, first, stop = batch
        images = range(first, stop)
        together = range(first, first + (self.fixed_batch or len(images)))
        noise = seeded_noise(self.backbone.input_shape, self.seed, len(together), first=first)
        drawn = self.sampler.sample(self._labels(together), noise=noise, seed=self.seed, first_image=first)
        drawn = drawn[: len(images)]
        if self.vae is not None:
            drawn = self.vae.decode(drawn)
            check_images(drawn)
        self._pixels.append(to_pixels(drawn).cpu())
        self.num_drawn += len(images)
        whole = self.samples.images_of(shard)
        if images.stop == whole.stop:
            self.samples.write_shard(self.folder, shard, torch.cat(self._pixels), self._labels(whole))
            self._pixels.clear()

    def _labels(self, images: range) -> Tensor | None:
        return image_labels(images, self.backbone.num_labels, self.labels, self.seed)
