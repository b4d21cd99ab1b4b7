"""Images of a method beside the uncached ones: the first noises and the worst, with their differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2c.io.json_fields import items, known_fields, member
from l2c.io.names import shown
from l2c.io.numbers import whole_number
from l2c.io.tensors import opened, write_tensors
from l2c.sampling.image_error import squared_errors

AMPLIFIED = 10  # differences are shown that many times
NUM_FIRST, NUM_WORST = 6, 3
ABOUT = ("name", "noises", "num_first", "errors", "mse", "num_images")
GREY_OR_COLOUR = (1, 3)  # channels of images; others are latents
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class SampleRow:
    """Some images of one method, with the uncached ones from the same noise.

    Attributes:
        name: the method, and which draw of it where there are several.
        noises: numbers of the S noises shown, the first ones and then the worst.
        num_first: number of first noises; the others are the worst, the largest error first.
        images: (S, C, H, W) of the method.
        target: (S, C, H, W) of the uncached sampler.
        errors: mean squared error of each of the S images.
        mse: mean squared error over all noises.
        num_images: number of all noises.

    """

    name: str
    noises: tuple[int, ...]
    num_first: int
    images: Tensor
    target: Tensor
    errors: tuple[float, ...]
    mse: float
    num_images: int

    @classmethod
    def of(
        cls, name: str, images: Tensor, target: Tensor, *, first: int = NUM_FIRST, worst: int = NUM_WORST
    ) -> SampleRow:
        """Choose the images to show: the first noises, and those with the largest errors of all.

        Args:
            name: the method.
            images: (N, C, H, W) of the method, all of them.
            target: (N, C, H, W) of the uncached sampler from the same noise.
            first: number of first noises.
            worst: number of worst noises.

        Raises:
            ValueError: if the shapes differ, or there is no image.

        """
        if images.shape != target.shape or not len(images):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, their target {tuple(target.shape)}; "
                "both must hold the same images, at least one"
            )
        errors = squared_errors(images, target).cpu()  # (N,)
        largest = torch.nan_to_num(errors, nan=torch.inf).argsort(descending=True, stable=True)
        noises = [*range(min(first, len(errors))), *largest[:worst].tolist()]
        return cls(
            name,
            tuple(noises),
            min(first, len(errors)),
            images[noises].cpu().contiguous(),
            target[noises].cpu().contiguous(),
            tuple(errors[noises].tolist()),
            float(errors.mean()),
            len(errors),
        )

    def drawn_from(self, num_draws: int) -> SampleRow:
        """Return the row with a name that says that it shows one of several draws."""
        return self if num_draws == 1 else replace(self, name=f"{self.name} (one of {num_draws} draws)")

    @property
    def worst(self) -> float | None:
        """The largest error of all noises; None where the worst are not shown."""
        return self.errors[self.num_first] if len(self.errors) > self.num_first else None

    def save(self, path: str | Path) -> None:
        """Write the row as safetensors; the file appears whole or not at all."""
        about = {
            "name": self.name,
            "noises": self.noises,
            "num_first": self.num_first,
            "errors": self.errors,
            "mse": self.mse,
            "num_images": self.num_images,
        }
        write_tensors(path, {"images": self.images, "target": self.target}, {"row": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> SampleRow:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file cannot be read, or what it says does not agree with its images.

        """
        again = "delete its folder and run again"
        with opened(path, what="images", again=again) as file:
            text = (file.metadata() or {})["row"]
            images, target = (file.get_tensor(name) for name in ("images", "target"))
        try:
            return cls(images=images, target=target, **_about(json.loads(text), images, target))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"cannot read images from {shown(path, 300)}: {error}; {again}") from error


def _about(content: Any, images: Tensor, target: Tensor) -> dict[str, Any]:
    """Return the values that a file says of a row's images.

    Raises:
        ValueError: if one is missing, of another type or out of range.

    """
    if not isinstance(content, dict):
        raise ValueError("it does not say what they are")
    known_fields(content, ABOUT)
    noises, errors = (items(content, name, (int, float), name) for name in ("noises", "errors"))
    about = {
        "name": member(content, "name", str),
        "noises": tuple(whole_number("noises", noise, low=0) for noise in noises),
        "errors": tuple(map(_error, errors)),
        "num_first": whole_number("num_first", member(content, "num_first", (int, float)), low=0, high=len(noises)),
        "mse": _error(member(content, "mse", (int, float))),
        "num_images": whole_number("num_images", member(content, "num_images", (int, float)), low=1),
    }
    if noises and max(about["noises"]) >= about["num_images"]:
        raise ValueError(f"it holds noise {max(about['noises'])} of {about['num_images']}")
    alike = images.shape == target.shape and images.is_floating_point() and target.is_floating_point()
    if not alike or images.ndim < 3 or not 0 < len(images) == len(noises) == len(errors):
        raise ValueError(f"it holds {len(noises)} noises and {len(errors)} errors for {tuple(images.shape)} images")
    return about


def _error(value: float) -> float:
    """Return a squared error, which is not finite where an image is not."""
    if value < 0:
        raise ValueError(f"an error must be at least 0, got {shown(value)}")
    return float(value)


def value_range(images: Tensor) -> float:
    """Return the value that is drawn white: 1 for images (N, C, H, W) with 1 or 3 channels, larger for latents."""
    if images.ndim == 4 and images.shape[1] in GREY_OR_COLOUR:
        return 1.0
    size = images.float().abs().nan_to_num(0.0, 0.0, 0.0).flatten()
    return max(1.0, float(torch.quantile(size[: 1 << 20], 0.995)))


def pixels(images: Tensor, scale: float = 1.0) -> list[Pixels]:
    """Return pictures (H, W, 3) with values in [0, 1]; what is not finite is black.

    Args:
        images: (N, C, H, W): one or two channels are drawn in grey (the first), of three and more (latents) the
            first three in colour; (N, T, D) tokens in grey; of video (N, C, F, H, W) the frame in the middle.
        scale: the value that is drawn white; its negative is black.

    """
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    if images.ndim == 3:
        images = images[:, None]
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    values = (shown.float() / scale).nan_to_num(-1.0, -1.0, -1.0).clamp(-1, 1)
    return list((((values + 1) / 2).permute(0, 2, 3, 1)).numpy())


def differences(row: SampleRow, scale: float = 1.0) -> list[Pixels]:
    """Return the difference of each image to the uncached one, amplified, as pictures; grey = none."""
    return pixels(AMPLIFIED * (row.images.float() - row.target.float()), scale)


def said_of(images: Tensor) -> str:
    """Return a note on how images of this shape are drawn; empty for grey and colour images."""
    if images.ndim == 5:
        return f"Of {images.shape[2]} frames the middle one is shown, of {images.shape[1]} channels the first three."
    if images.ndim == 3:
        return f"Each picture shows {images.shape[1]} tokens (down) of {images.shape[2]} features (across)."
    if images.shape[1] in GREY_OR_COLOUR:
        return ""
    which = "three" if images.shape[1] > 3 else "one"
    return f"Latents of {images.shape[1]} channels: the first {which} shown as colour, not decoded."


def stack(pictures: Sequence[Pixels], *, gap: int) -> Pixels:
    """Return pictures (H, W, 3) side by side as one (H, S W + gaps, 4), the gaps transparent."""
    height, width, _ = pictures[0].shape
    strip = np.zeros((height, len(pictures) * (width + gap) - gap, 4), dtype=np.float32)
    for place, picture in enumerate(pictures):
        start = place * (width + gap)
        strip[:, start : start + width, :3] = picture
        strip[:, start : start + width, 3] = 1
    return strip
