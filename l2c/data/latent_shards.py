"""A folder of latents: safetensors shards of posteriors (mean, std, label) and one manifest.

`latents.json` says what they were made of and for; shard k holds the images k S .. (k + 1) S - 1 of the image
folder; see `l2c.data.shards`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from l2c.data.shards import Shards, write_tensors


@dataclass(frozen=True)
class Manifest(Shards):
    """The manifest of a folder of latents.

    Attributes:
        vae: name of the autoencoder.
        scale: factor between its latents and what the backbone sees.
        image_size: height and width of the images.
        shape: (C, H, W) of a latent.
        num_images: images of the source folder.
        num_classes: classes of it.
        shard_size: images per shard.
        mirrored: whether each image is there a second time, mirrored.

    """

    FILE = "latents.json"
    FORMAT = "l2c-latents"
    WORD = "latents"
    MAKE = "make them with l2c encode"
    AGAIN = "encode the images again"

    vae: str
    scale: float
    image_size: int
    shape: tuple[int, int, int]
    num_images: int
    num_classes: int
    shard_size: int
    mirrored: bool


def write_shard(path: Path, mean: Tensor, std: Tensor, labels: Tensor, skipped: list[str]) -> None:
    """Write posteriors (N, C, H, W), in 16 bits, and labels (N,) as one shard, with the images left out."""
    tensors = {"mean": mean.half().contiguous(), "std": std.half().contiguous(), "labels": labels.contiguous()}
    write_tensors(path, tensors, {"skipped": json.dumps(skipped)})


def look_into(path: Path) -> tuple[int, list[str]]:
    """Return the number of latents in a shard and the names of the images that were left out of it.

    Raises:
        ValueError: if the shard cannot be read.

    """
    try:
        with safe_open(path, framework="pt") as file:
            count = file.get_slice("mean").get_shape()[0]
            return count, json.loads((file.metadata() or {}).get("skipped", "[]"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read latents from {path}: {error}; delete it and run l2c encode again") from error


class LatentShards:
    """All latents of a folder as one sequence of (mean, std, label).

    Args:
        folder: written by `l2c encode`.

    Raises:
        FileNotFoundError, ValueError: there are none, they are incomplete or damaged.

    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = Manifest.load(self.folder)
        missing = self.manifest.missing(self.folder)
        if missing:
            raise ValueError(
                f"the latents in {self.folder} are incomplete: {len(missing)} of {self.manifest.num_shards} shards "
                "are missing; run l2c encode again with the same settings, it continues"
            )
        self._files: dict[int, object] = {}
        self.skipped: list[str] = []
        self.places: list[tuple[int, int]] = []
        for k in range(self.manifest.num_shards):
            count, skipped = look_into(self.manifest.path(self.folder, k))
            self.skipped += skipped
            self.places += [(k, i) for i in range(count)]
        if not self.places:
            raise ValueError(f"the latents in {self.folder} hold no image: all were unreadable; check the images")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        k, i = self.places[index]
        if k not in self._files:  # opened in the process that reads
            self._files[k] = safe_open(self.manifest.path(self.folder, k), framework="pt")
        file = self._files[k]
        mean, std, label = (file.get_slice(name)[i] for name in ("mean", "std", "labels"))  # type: ignore[attr-defined]
        return mean, std, torch.as_tensor(label)
