"""A folder of sampled images: shards of 8-bit pixels and one manifest of the settings they were drawn with.

`samples.json` says what the images are; shard k holds the images k S .. (k + 1) S - 1. A shard appears whole or not
at all, so that a run which was killed goes on at the first missing one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from l2c.atomic import replacing

MANIFEST = "samples.json"
FORMAT = "l2c-samples"
Setting = str | int | float | None


def to_pixels(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [-1, 1] as 8-bit pixels, by DiT's rule: 127.5 x + 128, cut to 0..255."""
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Samples:
    """What a folder of samples is.

    Attributes:
        shape: (C, H, W) of an image.
        num_images: images of the whole folder.
        shard_size: images per shard.
        labelled: whether images have labels.
        settings: what they were drawn with, plain values by name.

    """

    shape: tuple[int, int, int]
    num_images: int
    shard_size: int
    labelled: bool
    settings: dict[str, Setting]

    @property
    def num_shards(self) -> int:
        """Number of shards of the whole folder."""
        return -(-self.num_images // self.shard_size)

    def images_of(self, shard: int) -> range:
        """Return the numbers of a shard's images."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def path(self, folder: Path, shard: int) -> Path:
        """Return the path of a shard."""
        return folder / f"samples-{shard:05d}-of-{self.num_shards:05d}.safetensors"

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the shards that are not there yet."""
        return [k for k in range(self.num_shards) if not self.path(folder, k).is_file()]

    def write_shard(self, folder: Path, shard: int, pixels: Tensor, labels: Tensor | None) -> None:
        """Write the images (N, C, H, W), 8 bits, and labels (N,) of a shard."""
        assert len(pixels) == len(self.images_of(shard))
        tensors = {"images": pixels.contiguous()}
        if labels is not None:
            tensors["labels"] = labels.contiguous()
        with replacing(self.path(folder, shard)) as temporary:
            save_file(tensors, temporary)

    def claim(self, folder: Path) -> None:
        """Make a folder that of these samples; one that holds others already is refused.

        Raises:
            ValueError: the folder holds samples of other settings, or is damaged.
            OSError: it cannot be written.

        """
        path = folder / MANIFEST
        if path.is_file():
            found = Samples.load(folder)
            here, there = ({**vars(samples), **samples.settings} for samples in (self, found))
            different = [name for name in here if name != "settings" and here[name] != there.get(name)]
            if different:
                name = different[0]
                raise ValueError(
                    f"{folder} holds samples with {name} {there.get(name)}, not {here[name]}; continue with the same "
                    "settings or choose another folder"
                )
            return
        with replacing(path) as temporary:
            text = json.dumps({"format": FORMAT, "version": 1, **asdict(self)}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Samples:
        """Read a folder's manifest.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or of another kind.

        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"no samples at {folder}: {MANIFEST} is missing; draw them with scripts/sample_many.py"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content.pop("format"), content.pop("version")) != (FORMAT, 1):
                raise ValueError("of another format or version")
            return cls(**{**content, "shape": tuple(content["shape"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of samples ({error}); draw the images again") from error


class ImageShards:
    """All images of a folder of samples, read a shard at a time.

    Args:
        folder: written by `scripts/sample_many.py`.

    Raises:
        FileNotFoundError, ValueError: there are none, or some are missing.

    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.samples = Samples.load(self.folder)
        self.shape = self.samples.shape
        missing = self.samples.missing(self.folder)
        if missing:
            raise ValueError(
                f"the samples in {self.folder} are incomplete: {len(missing)} of {self.samples.num_shards} shards "
                "are missing; run scripts/sample_many.py again with the same settings, it continues"
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
        path = self.samples.path(self.folder, shard)
        try:
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"cannot read samples from {path}: {error}; delete it and run scripts/sample_many.py again"
            ) from error
        if len(tensor) != len(self.samples.images_of(shard)):
            raise ValueError(f"{path} holds {len(tensor)} images; delete it and run scripts/sample_many.py again")
        return tensor
