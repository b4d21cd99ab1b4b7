"""A folder of latents: safetensors shards of posteriors (mean, std, label) and one manifest.

`latents.json` says what they were made of and for; shard k holds the images k S .. (k + 1) S - 1 of the image
folder; see `l2c.data.shards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from l2c.data.shards import LARGEST_SIDE, MOST_IMAGES, Shards
from l2c.io.bundled import at_home
from l2c.io.json_fields import member, parse
from l2c.io.names import shown
from l2c.io.numbers import finite_number, whole_number
from l2c.io.tensors import opened

DIGESTS = ("images_digest", "vae_digest")
AGAIN = "delete it and run l2c encode again"


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
        images_digest: of the images, see `ImageFolder.digest`; None = an older l2c did not note it.
        vae_digest: of the autoencoder's weights, see `vae_digest`; None likewise.

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
    images_digest: str | None = None
    vae_digest: str | None = None

    @classmethod
    def others(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields on images and autoencoder."""
        return {
            "vae": member(content, "vae", str),
            "scale": finite_number("scale", member(content, "scale", (int, float)), low=1e-9, high=1e9),
            "image_size": whole_number("image_size", content.get("image_size"), low=1, high=LARGEST_SIDE),
            "num_classes": whole_number("num_classes", content.get("num_classes"), low=1, high=MOST_IMAGES),
            "mirrored": member(content, "mirrored", bool),
            **{name: member({name: None, **content}, name, (str, type(None))) for name in DIGESTS},
        }

    def settings_to_agree(self) -> dict[str, Any]:
        """Return all but the autoencoder's name, which `vae_digest` says better."""
        return {name: value for name, value in vars(self).items() if name != "vae"}

    def write_shard(
        self, folder: Path, shard: int, mean: Tensor, std: Tensor, labels: Tensor, skipped: list[str]
    ) -> None:
        """Write posteriors (N, C, H, W), in 16 bits, and labels (N,) of a shard, with the images left out of it."""
        tensors = {"mean": mean.half(), "std": std.half(), "labels": labels}
        self.write(folder, shard, tensors, skipped=skipped)


def look_into(path: Path, manifest: Manifest) -> tuple[int, list[str]]:
    """Return the number of latents in a shard and the names of the images that were left out of it.

    Args:
        path: path of the shard.
        manifest: the folder's; shapes and labels must fit it.

    Raises:
        ValueError: if the shard cannot be read, or holds other tensors than the manifest says, or other labels.

    """
    with opened(path, what="latents", again=AGAIN) as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in ("mean", "std", "labels")]
        kinds = {file.get_slice(name).get_dtype() for name in ("mean", "std")}
        labels, texts = file.get_tensor("labels"), file.metadata() or {}
    said = manifest.said(path, texts)
    count = labels.numel()
    if shapes != [(count, *manifest.shape), (count, *manifest.shape), (count,)]:
        raise ValueError(
            f"{shown(path, 300)} holds mean, std and labels of {', '.join(map(str, shapes))}, not N times "
            f"{manifest.shape}; {AGAIN}"
        )
    if kinds != {"F16"}:
        raise ValueError(f"{shown(path, 300)} holds mean and std as {', '.join(sorted(kinds))}, not F16; {AGAIN}")
    if labels.dtype != torch.int64 or (
        count and not 0 <= int(labels.min()) <= int(labels.max()) < manifest.num_classes
    ):
        raise ValueError(f"{shown(path, 300)} holds labels out of 0..{manifest.num_classes - 1}; {AGAIN}")
    try:
        skipped = said["skipped"] if "skipped" in said else parse(texts.get("skipped", "[]"))
        if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
            raise ValueError("it must be a list of names")
    except ValueError as error:
        raise ValueError(f"cannot read the images left out of {shown(path, 300)}: {error}; {AGAIN}") from error
    return count, skipped


class LatentShards:
    """All latents of a folder as one sequence of (mean, std, label).

    Args:
        folder: written by `l2c encode`.

    Raises:
        FileNotFoundError, ValueError: there are none, they are incomplete or damaged.

    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = at_home(folder)
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
            count, skipped = look_into(self.manifest.path(self.folder, k), self.manifest)
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
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                f"{shown(self.manifest.path(self.folder, k), 300)} holds latents that are not finite (image {i}); "
                "delete it and run l2c encode again"
            )
        return mean, std, torch.as_tensor(label)
