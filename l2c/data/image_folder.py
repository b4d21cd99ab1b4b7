"""Images of a folder, one sub-folder per class, cropped as the published backbones saw them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
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


class ImageFolder:
    """The images of a folder in a fixed order: classes by name, files by name.

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
        self.folder = Path(folder).expanduser()
        self.size = size
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no image folder at {self.folder}; give one with a sub-folder of images per class"
            )
        classes = sorted(path for path in self.folder.iterdir() if path.is_dir())
        found = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted(name.iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise ValueError(
                f"{self.folder} has {len(classes)} sub-folders but no images in them; it must hold one sub-folder "
                f"per class with files of {', '.join(sorted(SUFFIXES))}"
            )
        self.paths = [path for path, _ in found]
        self.labels = [label for _, label in found]
        self.num_classes = len(classes)
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Tensor | None:
        """Return an image (3, size, size) in [-1, 1]; None, with a warning and a note, where it cannot be read."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                pixels = np.array(centre_crop(image.convert("RGB"), self.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = str(path.relative_to(self.folder))
            if name not in self.unreadable:
                self.unreadable.append(name)
                log.warning("skipped the unreadable image %s (%s); %d so far", path, error, len(self.unreadable))
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
