"""Images to latents, shard by shard; continues where a killed run stopped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.data.image_folder import ImageFolder
from l2c.data.latent_shards import Manifest, look_into
from l2c.data.share import Share
from l2c.data.vae import Vae, vae_digest
from l2c.io.bundled import at_home
from l2c.io.names import listed, shown

log = logging.getLogger(__name__)
WHOLE = Share()


@dataclass(frozen=True)
class Encoded:
    """The result of an encode.

    Attributes:
        num_images: images that this process wrote in this run.
        skipped: names of the unreadable images left out of all shards that are there, whoever wrote them and when.
        missing_shards: shards that other processes still have to write.

    """

    num_images: int
    skipped: tuple[str, ...]
    missing_shards: int


def encode_folder(
    images: ImageFolder,
    vae: Vae,
    output: str | Path,
    *,
    vae_name: str,
    batch_size: int = 32,
    shard_size: int = 4096,
    mirrored: bool = True,
    part: Share = WHOLE,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Encoded:
    """Encode all images of a folder.

    A folder of shards goes on where it was left if they are of the same images, autoencoder and settings; see
    `ImageFolder.digest` for what that costs.

    Args:
        images: the images; unreadable ones are left out, counted and named.
        vae: the autoencoder.
        output: folder of the shards.
        vae_name: name of the VAE for the manifest.
        batch_size: images at a time.
        shard_size: images per file.
        mirrored: encode each image a second time, mirrored.
        part: this process's; it writes its part of the missing shards.
        device: device to encode on.
        progress: show a bar.

    Raises:
        ValueError: if the folder holds latents of other images or settings, or a damaged shard, or no readable image.
        OSError: if the folder cannot be written, or the disk is full; whole shards stay.

    """
    folder = at_home(output)
    probe = vae.encode(torch.zeros(1, 3, images.size, images.size, device=device))[0]
    wanted = _manifest(images, vae, probe, vae=vae_name, shard_size=shard_size, mirrored=mirrored)
    wanted.claim(folder)
    todo = part.of(wanted.missing(folder))
    counts = {k: len(wanted.images_of(k)) for k in part.of(range(wanted.num_shards))}
    total, done = sum(counts.values()), sum(count for k, count in counts.items() if k not in todo)
    written = 0
    with tqdm(total=total, initial=done, unit="image", desc="encoding", disable=not progress) as bar:
        for k in todo:
            before = len(images.unreadable)
            places = wanted.images_of(k)
            mean, std, labels = _encode(
                images, vae, places, batch_size, mirrored, torch.device(device), wanted.shape, bar
            )
            wanted.write_shard(folder, k, mean, std, labels, images.unreadable[before:])
            written += len(labels) // (2 if mirrored else 1)
    return _said(wanted, folder, written)


def _manifest(images: ImageFolder, encoder: Vae, probe: Tensor, **settings: Any) -> Manifest:
    """Return the manifest that the folder gets; `probe` are latents (1, C, H, W) of an image."""
    _, channels, height, width = probe.shape
    return Manifest(
        scale=encoder.scale,
        image_size=images.size,
        shape=(channels, height, width),
        num_images=len(images),
        num_classes=images.num_classes,
        images_digest=images.digest(),
        vae_digest=vae_digest(encoder),
        **settings,
    )


def _said(wanted: Manifest, folder: Path, written: int) -> Encoded:
    """Return what is in a folder of shards and what is missing; refuse one in which no image could be read."""
    missing = wanted.missing(folder)
    there = [wanted.path(folder, k) for k in range(wanted.num_shards) if k not in set(missing)]
    skipped = tuple(name for path in there for name in look_into(path, wanted)[1])
    if not missing and len(skipped) == wanted.num_images:
        raise ValueError(
            f"none of the {wanted.num_images} images can be read {listed(skipped, 3)}, so that the latents in "
            f"{shown(folder, 300)} hold none; give images, and remove that folder"
        )
    return Encoded(written, skipped, len(missing))


def _encode(
    images: ImageFolder,
    vae: Vae,
    places: range,
    batch_size: int,
    mirrored: bool,
    device: torch.device,
    shape: tuple[int, ...],
    bar: tqdm,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, std (N, C, H, W) and labels (N,) of one shard."""
    means, stds, labels = [torch.empty(0, *shape)], [torch.empty(0, *shape)], [torch.empty(0, dtype=torch.long)]
    for start in range(places.start, places.stop, batch_size):
        batch = range(start, min(start + batch_size, places.stop))
        read = [(images.read(i), images.labels[i]) for i in batch]
        pixels = [image for image, _ in read if image is not None]
        if pixels:
            x = torch.stack(pixels).to(device)
            y = torch.tensor([label for image, label in read if image is not None])
            for view in (x, x.flip(-1)) if mirrored else (x,):
                mean, std = vae.encode(view)
                means.append(mean.float().cpu())
                stds.append(std.float().cpu())
                labels.append(y)
        bar.update(len(batch))
    return torch.cat(means), torch.cat(stds), torch.cat(labels)
