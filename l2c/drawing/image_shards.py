"""A folder of sampled images: shards of 8-bit pixels and one manifest of the settings they were drawn with.

`samples.json` says what the images are; see `l2c.data.shards`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.data.shards import Shards
from l2c.io.bundled import at_home
from l2c.io.json_fields import member
from l2c.io.names import quoted, shown
from l2c.io.tensors import opened

Setting = str | int | float | None


def to_pixels(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [-1, 1] as 8-bit pixels, by DiT's rule: 127.5 x + 128, cut to 0..255."""
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Samples(Shards):
    """The manifest of a folder of samples.

    Attributes:
        shape: (C, H, W) of an image.
        num_images: images of the whole folder.
        shard_size: images per shard.
        labelled: whether images have labels.
        settings: settings of the drawing, plain values by name.

    """

    FILE = "samples.json"
    FORMAT = "l2c-samples"
    WORD = "samples"
    MAKE = "draw them with l2c sample-many"
    AGAIN = "draw the images again"

    shape: tuple[int, int, int]
    num_images: int
    shard_size: int
    labelled: bool
    settings: dict[str, Setting]

    def write_shard(self, folder: Path, shard: int, pixels: Tensor, labels: Tensor | None) -> None:
        """Write the images (N, C, H, W), 8 bits, and labels (N,) of a shard."""
        assert len(pixels) == len(self.images_of(shard))
        tensors = {"images": pixels}
        if labels is not None:
            tensors["labels"] = labels
        self.write(folder, shard, tensors)

    @classmethod
    def others(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return `labelled` and `settings`, plain values by name."""
        settings = member(content, "settings", dict)
        wrong = next((name for name, value in settings.items() if isinstance(value, dict | list)), None)
        if wrong is not None:
            raise ValueError(f"the setting {quoted(wrong)} must be text, a number or null")
        return {"labelled": member(content, "labelled", bool), "settings": settings}

    def settings_to_agree(self) -> dict[str, Any]:
        """Return the settings that must be equal when a folder is continued, not an autoencoder's name."""
        own = {name: value for name, value in vars(self).items() if name != "settings"}
        return {**own, **{name: value for name, value in self.settings.items() if name != "vae"}}


class ImageShards:
    """All images of a folder of samples, read a shard at a time.

    Args:
        folder: written by `l2c sample-many`.

    Raises:
        FileNotFoundError, ValueError: there are none, or some are missing.

    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = at_home(folder)
        self.samples = Samples.load(self.folder)
        self.shape = self.samples.shape
        missing = self.samples.missing(self.folder)
        if missing:
            raise ValueError(
                f"the samples in {self.folder} are incomplete: {len(missing)} of {self.samples.num_shards} shards "
                "are missing; run l2c sample-many again with the same settings, it continues"
            )

    def __len__(self) -> int:
        return self.samples.num_images

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, (N, C, H, W) of 8 bits with N up to `size`."""
        for k in range(self.samples.num_shards):
            yield from self._read(k, "images").split(size)

    def labels(self) -> Tensor | None:
        """Return the labels of all images, (num_images,)."""
        if not self.samples.labelled:
            return None
        return torch.cat([self._read(k, "labels") for k in range(self.samples.num_shards)])

    def _read(self, shard: int, name: str) -> Tensor:
        path, again = self.samples.path(self.folder, shard), "delete it and run l2c sample-many again"
        with opened(path, what="samples", again=again) as file:
            tensor, texts = file.get_tensor(name), file.metadata()
        self.samples.said(path, texts)
        count = len(self.samples.images_of(shard))
        wanted = (count, *self.shape) if name == "images" else (count,)
        if tuple(tensor.shape) != wanted or tensor.dtype != (torch.uint8 if name == "images" else torch.int64):
            raise ValueError(
                f"{shown(path, 300)} holds {name} of shape {tuple(tensor.shape)} and type {tensor.dtype}, not "
                f"{wanted}; {again}"
            )
        return tensor
