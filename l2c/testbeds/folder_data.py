"""A folder of one's own images as training data for a small backbone in pixels."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from l2c.data.image_folder import ImageFolder
from l2c.data.pixels import PixelDataModule
from l2c.data.step_sampler import NumberedBatchSampler
from l2c.io.seeds import Stream


class FolderPictures(Dataset[tuple[Tensor, int]]):
    """Item `(index, draw)` is image `index` (3, H, H) in [-1, 1], mirrored every other time, and its label.

    An image that cannot be read is replaced by the next one, with a warning.
    """

    def __init__(self, images: ImageFolder, seed: int) -> None:
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = item
        image, label = self.images.read_next(index)
        mirrored = Stream("an image of a folder", self.seed, draw).uniform() < 0.5
        return (image.flip(-1) if mirrored else image), label


class FolderDataModule(PixelDataModule):
    """Images of a folder with one sub-folder per class, cropped to squares: (N, 3, H, H) and labels (N,).

    Args:
        batch_size: images per step, over all processes.
        seed: seed of order and mirroring.
        folder: a folder with a sub-folder of images per class.
        image_shape: (3, H, H), to which images are cropped.
        num_labels: required number of classes.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the folder has another number of classes or no images, or the shape is no colour square.

    """

    sampler = NumberedBatchSampler

    def __init__(
        self, batch_size: int, seed: int, *, folder: str | Path, image_shape: tuple[int, int, int], num_labels: int
    ) -> None:
        super().__init__(batch_size, seed)
        channels, height, width = image_shape
        if channels != 3 or height != width:
            raise ValueError(
                f"dataset=folder has square images of three channels, but the backbone takes {image_shape}; "
                "take a backbone of (3, H, H)"
            )
        self.pictures = ImageFolder(folder, height)
        if self.pictures.num_classes != num_labels:
            raise ValueError(
                f"{folder} has {self.pictures.num_classes} sub-folders, but the backbone has {num_labels} labels; "
                f"say model.args.num_classes={self.pictures.num_classes}"
            )

    def identity(self) -> dict[str, str]:
        """Return a digest of the images."""
        return {"images_digest": self.pictures.digest()}

    def images(self) -> FolderPictures:
        """Return the images with their labels."""
        return FolderPictures(self.pictures, self.seed)
