"""Real images as scores see them: statistics of features, and the features themselves where there are images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.drawing.image_archive import IMAGES, ArchiveImages, array_names, open_member, read_header
from l2c.drawing.image_shards import ImageShards, to_pixels
from l2c.evaluation.scores.features import FeatureExtractor, ImageFeatures
from l2c.evaluation.scores.frechet import Frechet
from l2c.io.atomic import replacing
from l2c.io.bundled import at_home
from l2c.io.names import shown

MOST_FEATURES = 2**14
PAIRS = (("mu", "sigma"), ("mu_s", "sigma_s"))  # ADM's names; _s are those of spatial features


class ImageSet(Protocol):
    """Images that are read a batch at a time; `shape` is (C, H, W)."""

    shape: tuple[int, int, int]

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, (N, C, H, W) of 8 bits with N up to `size`."""


class TensorImages:
    """Images in memory as 8-bit ones.

    Args:
        images: (N, C, H, W) in [-1, 1].

    """

    def __init__(self, images: Tensor) -> None:
        self._pixels = to_pixels(images)
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self._pixels)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, (N, C, H, W) of 8 bits with N up to `size`."""
        yield from self._pixels.split(size)


@dataclass(frozen=True)
class Reference:
    """The reference that a set of images is scored against.

    Attributes:
        statistics: `mu` (F,) and `sigma` (F, F) of pooled features; `mu_s`, `sigma_s` of spatial ones, where known.
        pooled: (M, F), features of M real images for precision and recall; None without images.
        features: name of the extractor.

    """

    statistics: Mapping[str, np.ndarray]
    pooled: Tensor | None
    features: str

    @property
    def num_images(self) -> int | None:
        """Number of real images; None where only their statistics are known."""
        return None if self.pooled is None else len(self.pooled)

    def save_statistics(self, path: str | Path) -> None:
        """Write the statistics as an `.npz` in ADM's layout; a later run needs no real images for FID and sFID."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **self.statistics)  # type: ignore[arg-type]


def open_images(path: str | Path) -> ImageSet:
    """Return the images of a folder of samples or of an `.npz` file.

    Raises:
        FileNotFoundError, ValueError: there are none, or they are incomplete or damaged.

    """
    place = at_home(path)
    return ImageShards(place) if place.is_dir() else ArchiveImages(place)


def features_of(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    what: str = "features",
    progress: bool = True,
) -> Iterator[ImageFeatures]:
    """Yield the features of a set of images, a batch at a time.

    Raises:
        ValueError: if the images have other channels than the extractor reads.

    """
    if images.shape[0] != extractor.channels:
        raise ValueError(
            f"the images have {images.shape[0]} channels, but features={extractor.name} reads {extractor.channels}; "
            "take other features"
        )
    with tqdm(total=len(images), desc=what, unit="image", disable=not progress) as bar:
        for batch in images.batches(batch_size):
            yield extractor(batch.to(device))
            bar.update(len(batch))


def check_reference(source: str | Path) -> None:
    """Check that a reference exists and is readable, before images are drawn for it.

    Raises:
        FileNotFoundError, ValueError: the source is not there, or damaged.

    """
    path = at_home(source)
    if path.is_dir():
        open_images(path)
    else:
        _names(path)


def load_reference(
    source: str | Path | ImageSet,
    extractor: FeatureExtractor,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Reference:
    """Return a reference from real images, from their statistics, or from both.

    Args:
        source: a set of images; a folder of samples; or an `.npz` file that holds `arr_0` (images), `mu` and `sigma`
            (statistics), or both as ADM's files do: the statistics then count for the Frechet distances, the images
            for precision and recall.
        extractor: the features.
        batch_size: images at a time.
        device: device to compute on.
        progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: the source is not there, or damaged.

    """
    images: ImageSet | None
    statistics: dict[str, np.ndarray] = {}
    if not isinstance(source, (str, Path)):
        images = source
    elif (path := at_home(source)).is_dir():
        images = open_images(path)
    else:
        names = _names(path)
        images = ArchiveImages(path) if IMAGES in names else None
        known = [name for pair in PAIRS if {*PAIRS[0], *pair} <= set(names) for name in pair]
        statistics = {name: _read_array(path, name) for name in known}
    if images is None:
        return Reference(statistics, None, extractor.name)
    pooled, sums = [], None
    for features in features_of(
        images, extractor, batch_size=batch_size, device=device, what="reference", progress=progress
    ):
        pooled.append(features.pooled)
        if not statistics:
            sums = sums or (Frechet(features.pooled.shape[1], device), Frechet(features.spatial.shape[1], device))
            sums[0].add(features.pooled, real=True)
            sums[1].add(features.spatial, real=True)
    if sums is not None:
        for pair, distance in zip(PAIRS, sums, strict=True):
            statistics |= zip(pair, distance.real_statistics(), strict=True)
    return Reference(statistics, torch.cat(pooled), extractor.name)


def is_statistics(path: str | Path) -> bool:
    """Return whether a file holds the statistics of a reference alone, as `Reference.save_statistics` writes them."""
    try:
        return set(array_names(Path(path))) in ({*PAIRS[0]}, {*PAIRS[0], *PAIRS[1]})
    except (OSError, ValueError):
        return False


def _names(path: Path) -> list[str]:
    """Return the arrays of a reference file, or refuse it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no reference at {path}; give an .npz file of real images or of their statistics (ADM publishes "
            "VIRTUAL_imagenet256_labeled.npz), or reference=digits"
        )
    names = array_names(path)
    if IMAGES not in names and not {"mu", "sigma"} <= set(names):
        raise ValueError(
            f"{path} holds {', '.join(map(shown, names)) or 'nothing'}; a reference holds {IMAGES} (images), or mu "
            "and sigma (statistics); give such a file"
        )
    return names


def _read_array(path: Path, name: str) -> np.ndarray:
    """Return one array of statistics, (F,) or (F, F) finite numbers."""
    with open_member(path, name) as file:
        shape, _, dtype = read_header(file)
    wanted = 1 if name.startswith("mu") else 2
    if len(shape) != wanted or dtype.kind != "f" or not all(0 < side <= MOST_FEATURES for side in shape):
        raise ValueError(
            f"{name} of {path} has the shape {shape} and type {dtype}; statistics are floating-point numbers, mu of "
            f"(F,) and sigma of (F, F), with F up to {MOST_FEATURES}; fetch the file again"
        )
    with open_member(path, name) as file:
        values = np.lib.format.read_array(file, allow_pickle=False)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} of {path} holds numbers that are not finite; fetch the file again")
    return values
