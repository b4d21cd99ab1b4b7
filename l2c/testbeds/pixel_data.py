"""Pixel data sets by name."""

from __future__ import annotations

from typing import Any

from l2c.data.pixels import PixelDataModule
from l2c.testbeds.digits_data import DigitsDataModule
from l2c.testbeds.emoji_data import EmojiDataModule
from l2c.testbeds.folder_data import FolderDataModule

PIXEL_DATA: dict[str, type[PixelDataModule]] = {
    "digits": DigitsDataModule,
    "emoji": EmojiDataModule,
}


def pixel_data(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_labels: int,
    batch_size: int,
    seed: int,
    **options: Any,
) -> PixelDataModule:
    """Return the data module of a name, for a backbone of some input and labels.

    Args:
        name: one of `PIXEL_DATA`, or `folder` for images of one's own.
        image_shape: (C, H, W) of the backbone's input.
        num_labels: labels are 0..num_labels-1.
        batch_size: images per step, over all processes.
        seed: seed of order and augmentation.
        options: the data set's own settings.

    Raises:
        FileNotFoundError: if the data set is missing; the message says how to get it.
        ValueError: if a name or option is unknown, or the data's images or classes do not fit the backbone.

    """
    if name == "folder":
        if set(options) != {"folder"}:
            raise ValueError(
                f"dataset=folder takes one setting, got {sorted(options) or 'none'}; say +dataset_options.folder=PATH"
            )
        return FolderDataModule(batch_size, seed, **options, image_shape=image_shape, num_labels=num_labels)
    if name not in PIXEL_DATA:
        raise ValueError(f"{name!r} is no data set of pixels; known are {', '.join(PIXEL_DATA)} and folder")
    kind = PIXEL_DATA[name]
    if (image_shape, num_labels) != (kind.image_shape, kind.num_classes):
        raise ValueError(
            f"data={name} has images {kind.image_shape} of {kind.num_classes} classes, but the backbone takes "
            f"{image_shape} of {num_labels}; take data=noise, which needs no images"
        )
    unknown = sorted(set(options) - kind.options)
    if unknown:
        allowed = ", ".join(sorted(kind.options)) or "none"
        raise ValueError(f"data={name} has no setting {unknown[0]!r}; its settings are: {allowed}")
    return kind(batch_size, seed=seed, **options)
