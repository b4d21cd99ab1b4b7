"""Names to the small data sets that ship with scikit-learn."""

from __future__ import annotations

from l2c.data.pixels import PixelDataModule
from l2c.testbeds.digits import DigitsDataModule
from l2c.testbeds.photos import PhotosDataModule

PIXEL_DATA: dict[str, type[PixelDataModule]] = {"digits": DigitsDataModule, "photos": PhotosDataModule}


def pixel_data(
    name: str, *, image_shape: tuple[int, int, int], num_labels: int, batch_size: int, seed: int
) -> PixelDataModule:
    """Return the data module of a name, for a backbone of some input and labels.

    Raises:
        ValueError: an unknown name, or images or classes that are not the backbone's.

    """
    if name not in PIXEL_DATA:
        raise ValueError(f"{name!r} is no data set of pixels; known are {', '.join(PIXEL_DATA)}")
    kind = PIXEL_DATA[name]
    if (image_shape, num_labels) != (kind.image_shape, kind.num_classes):
        raise ValueError(
            f"data={name} has images {kind.image_shape} of {kind.num_classes} classes, but the backbone takes "
            f"{image_shape} of {num_labels}; take data=noise, which needs no images"
        )
    return kind(batch_size, seed=seed)
