"""Images of a folder, one sub-folder per class, cropped as the published backbones saw them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from l2c.io.bundled import at_home
from l2c.io.digests import digest_of_files
from l2c.io.names import listed, shown

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # whatever the name says; others may start programs (EPS)
LARGEST_RATIO = 64  # of an image's sides: its short side is what is enlarged to the size
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits
MOST_BYTES = 2**29
SCAN, MOST_SCANS = b"\xff\xda", 64  # of a JPEG; a progressive one has about ten, each goes over all pixels
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)  # more than `Image.MAX_IMAGE_PIXELS`
log = logging.getLogger(__name__)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the central square of an image at size x size, as ADM (arXiv 2105.05233) prepares ImageNet.

    The image is halved by box averaging while its shorter side is at least twice the size, then resized
    bicubically to it.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def as_colours(image: Image.Image) -> Image.Image:
    """Return an image as a viewer shows it: turned as its EXIF tag says, on white, 8 bits of red, green and blue.

    Grey values of 16 bits keep their upper 8; Pillow alone would cut them off at 255, which is white.

    Raises:
        ValueError: if its values have no known range.

    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("its floating-point values have no known range")
    if image.mode in DEEP:
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image.convert("RGB")


@contextmanager
def _no_bombs() -> Iterator[None]:
    """Make Pillow refuse an image of which it would only warn: 90 million pixels take a gigabyte."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _hidden(path: Path) -> bool:
    """Return whether a file or folder is one that file managers and editors leave beside the images."""
    return path.name.startswith(".") or path.name == "__MACOSX"


class ImageFolder:
    """The images of a folder in a fixed order: classes by name, files by name; hidden ones are passed over.

    Args:
        folder: holds one sub-folder per class.
        size: height and width of the crop.

    Attributes:
        paths: the files.
        labels: the class of each, 0.. in the order of the classes' names.
        unreadable: names of files that could not be read so far.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the folder holds no images.

    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self.folder = at_home(folder)
        self.size = size
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no image folder at {self.folder}; give one with a sub-folder of images per class"
            )
        classes = sorted(path for path in self.folder.iterdir() if path.is_dir() and not _hidden(path))
        found = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted(name.iterdir())
            if path.suffix.lower() in SUFFIXES and not _hidden(path)
        ]
        if not found:
            raise ValueError(
                f"{self.folder} has {len(classes)} sub-folders but no images in them; it must hold one sub-folder "
                f"per class with files of {', '.join(sorted(SUFFIXES))}"
            )
        filled = {label for _, label in found}
        empty = [shown(path.name) for label, path in enumerate(classes) if label not in filled]
        if empty:
            log.warning("%d of the sub-folders of %s hold no images: %s", len(empty), self.folder, listed(empty))
        self.paths = [path for path, _ in found]
        self.labels = [label for _, label in found]
        self.num_classes = len(classes)
        self.unreadable: list[str] = []
        self._noted: set[int] = set()  # their indices

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """Return a digest of the images: labels, names, sizes and bytes, see `digest_of_files`; read at each call."""
        names = (
            f"{label} {path.relative_to(self.folder)}" for path, label in zip(self.paths, self.labels, strict=True)
        )
        return digest_of_files([*zip(names, self.paths, strict=True)])

    def read(self, index: int) -> Tensor | None:
        """Return an image (3, size, size) in [-1, 1]; None, with a warning and a note, where it cannot be read."""
        path = self.paths[index]
        try:
            if not path.is_file():  # a pipe would wait for ever
                raise ValueError("it is no plain file")
            if (size := path.stat().st_size) > MOST_BYTES:
                raise ValueError(f"it has {size} bytes, at most {MOST_BYTES} are read")
            with _no_bombs(), Image.open(path, formats=FORMATS) as image:
                if image.format in ("JPEG", "MPO") and path.read_bytes().count(SCAN) > MOST_SCANS:
                    raise ValueError(f"it has more than {MOST_SCANS} scans")
                if max(image.size) > LARGEST_RATIO * min(image.size):
                    raise ValueError(f"its sides are {image.width} and {image.height}")
                pixels = np.array(centre_crop(as_colours(image), self.size))
        except (OSError, ValueError, SyntaxError, *BOMBS) as error:
            if index not in self._noted:
                self._noted.add(index)
                self.unreadable.append(str(path.relative_to(self.folder)))
                what = f"{shown(path, 300)} ({shown(error, 200)})"
                log.warning("skipped the unreadable image %s; %d so far", what, len(self.unreadable))
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1

    def read_next(self, index: int) -> tuple[Tensor, int]:
        """Return the image and label at an index, or those of the next readable one.

        Raises:
            ValueError: if no image of the folder can be read.

        """
        for i in range(len(self)):
            place = (index + i) % len(self)
            image = self.read(place)
            if image is not None:
                return image, self.labels[place]
        raise ValueError(f"none of the {len(self)} images in {self.folder} can be read; copy them again")
