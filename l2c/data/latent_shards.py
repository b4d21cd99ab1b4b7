"""A folder of latents: safetensors shards of posteriors (mean, std, label) and one manifest.

`latents.json` says what they were made of and for; shard k holds the images k S .. (k + 1) S - 1 of the image
folder. A shard appears whole or not at all, so that an encode which was killed goes on at the first missing one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from l2c.atomic import replacing
from l2c.data.image_shards import write_tensors

MANIFEST = "latents.json"
FORMAT = "l2c-latents"


@dataclass(frozen=True)
class Manifest:
    """What a folder of latents is.

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

    vae: str
    scale: float
    image_size: int
    shape: tuple[int, int, int]
    num_images: int
    num_classes: int
    shard_size: int
    mirrored: bool

    @property
    def num_shards(self) -> int:
        """Number of shards of the whole folder."""
        return -(-self.num_images // self.shard_size)

    def shard(self, folder: Path, index: int) -> Path:
        """Return the path of a shard."""
        return folder / f"latents-{index:05d}-of-{self.num_shards:05d}.safetensors"

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the shards that are not there yet."""
        return [k for k in range(self.num_shards) if not self.shard(folder, k).is_file()]

    def save(self, folder: Path) -> None:
        """Write the manifest."""
        with replacing(folder / MANIFEST) as temporary:
            text = json.dumps({"format": FORMAT, "version": 1, **asdict(self)}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read a folder's manifest.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or of another kind.

        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"no latents at {folder}: {MANIFEST} is missing; make them with scripts/encode_latents.py"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content.pop("format"), content.pop("version")) != (FORMAT, 1):
                raise ValueError("of another format or version")
            return cls(**{**content, "shape": tuple(content["shape"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of latents ({error}); encode the images again") from error


def write_shard(path: Path, mean: Tensor, std: Tensor, labels: Tensor, skipped: list[str]) -> None:
    """Write posteriors (N, C, H, W), in 16 bits, and labels (N,) as one shard, with the images left out."""
    tensors = {"mean": mean.half().contiguous(), "std": std.half().contiguous(), "labels": labels.contiguous()}
    write_tensors(path, tensors, {"skipped": json.dumps(skipped)})


def look_into(path: Path) -> tuple[int, list[str]]:
    """Return the number of latents in a shard and the names of the images that were left out of it.

    Raises:
        ValueError: it cannot be read.

    """
    try:
        with safe_open(path, framework="pt") as file:
            count = file.get_slice("mean").get_shape()[0]
            return count, json.loads((file.metadata() or {}).get("skipped", "[]"))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"cannot read latents from {path}: {error}; delete it and run scripts/encode_latents.py again"
        ) from error


class LatentShards:
    """All latents of a folder as one sequence of (mean, std, label).

    Args:
        folder: written by `scripts/encode_latents.py`.

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
                "are missing; run scripts/encode_latents.py again with the same settings, it continues"
            )
        self._files: dict[int, object] = {}
        self.skipped: list[str] = []
        self.places: list[tuple[int, int]] = []
        for k in range(self.manifest.num_shards):
            count, skipped = look_into(self.manifest.shard(self.folder, k))
            self.skipped += skipped
            self.places += [(k, i) for i in range(count)]
        if not self.places:
            raise ValueError(f"the latents in {self.folder} hold no image: all were unreadable; check the images")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        k, i = self.places[index]
        if k not in self._files:  # opened in the process that reads
            self._files[k] = safe_open(self.manifest.shard(self.folder, k), framework="pt")
        file = self._files[k]
        mean, std, label = (file.get_slice(name)[i] for name in ("mean", "std", "labels"))  # type: ignore[attr-defined]
        return mean, std, torch.as_tensor(label)
