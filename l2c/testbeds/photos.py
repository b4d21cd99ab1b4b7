"""32 x 32 colour crops of the two photographs in scikit-learn, in [-1, 1]; the class is the photograph."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import Dataset

from l2c.data.pixels import PixelDataModule
from l2c.data.step_sampler import NumberedBatchSampler
from l2c.io.seeds import Stream

IMAGE_SHAPE = (3, 32, 32)
NUM_CLASSES = 2
SHRINK = 4  # 427 x 640 pixels become 106 x 160, so that a crop shows more than a smooth patch


def photos() -> list[Tensor]:
    """Return the photographs (3, 106, 160) in [-1, 1], each pixel the mean of 4 x 4: a temple, a flower."""
    images = [torch.tensor(image).movedim(2, 0).float() / 127.5 - 1 for image in load_sample_images().images]
    return [torch.nn.functional.avg_pool2d(image, SHRINK) for image in images]


class PhotoCrops(Dataset[tuple[Tensor, int]]):
    """Item `(index, draw)` is a crop (3, 32, 32) of photograph `index`, mirrored or not, and the index.

    Place and mirroring depend on the seed and the draw alone.
    """

    def __init__(self, seed: int) -> None:
        self.images = photos()
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = item
        image, (_, height, width) = self.images[index], IMAGE_SHAPE
        share = Stream("crop of a photograph", self.seed, draw).uniform(3).tolist()
        top = int(share[0] * (image.shape[1] - height + 1))
        left = int(share[1] * (image.shape[2] - width + 1))
        crop = image[:, top : top + height, left : left + width]
        return (crop.flip(-1) if share[2] < 0.5 else crop), index


class PhotosDataModule(PixelDataModule):
    """Crops drawn on the fly: (N, 3, 32, 32) and labels 0..1; the seed is that of places and mirroring, too."""

    image_shape = IMAGE_SHAPE
    num_classes = NUM_CLASSES
    sampler = NumberedBatchSampler

    def images(self) -> PhotoCrops:
        """Return the crops with their labels."""
        return PhotoCrops(self.seed)
