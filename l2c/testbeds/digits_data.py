"""Training data of the digits."""

from __future__ import annotations

from torch.utils.data import TensorDataset

from l2c.data.pixels import PixelDataModule
from l2c.io.tensors import digest_of_tensors
from l2c.testbeds.digits import IMAGE_SHAPE, NUM_CLASSES, digits


class DigitsDataModule(PixelDataModule):
    """The digits: (N, 1, 8, 8) and labels 0..9."""

    image_shape = IMAGE_SHAPE
    num_classes = NUM_CLASSES

    def identity(self) -> dict[str, str]:
        """Return a digest of the digits."""
        return {"images_digest": digest_of_tensors(zip(("images", "labels"), digits(), strict=True))}

    def images(self) -> TensorDataset:
        """Return the digits with their labels."""
        return TensorDataset(*digits())
