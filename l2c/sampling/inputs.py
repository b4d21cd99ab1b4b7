"""Checks of a sampler's inputs and images for one batch, with one sentence for each error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.io.names import quoted
from l2c.io.tensors import is_plain


class NotFinite(ValueError):
    """An image came out as NaN or infinity."""


def as_labels(labels: Tensor | Sequence[int] | None, device: torch.device) -> Tensor | None:
    """Return labels as a tensor on a device; None stays None.

    Raises:
        ValueError: if they are no numbers.

    """
    if labels is None:
        return None
    try:
        labels = (
            np.ascontiguousarray(labels) if isinstance(labels, np.ndarray) else labels
        )  # torch reads no other way
        return torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be integers of shape (N,), got {quoted(labels)}; say [3, 7]") from error


def checked_count(backbone: Backbone, y: Tensor | None, noise: Tensor | None) -> int:
    """Return the number of images N.

    Args:
        backbone: the network.
        y: (N,) labels; None for a backbone without.
        noise: (N, C, H, W); None = to be drawn.

    Raises:
        ValueError: if labels or noise do not fit the backbone or each other, or the noise is not finite.

    """
    name, num_labels = backbone.conventions.name, backbone.num_labels
    if next(backbone.parameters()).is_meta:
        raise ValueError(
            f"the weights of {name} are on the device meta, where they have no values; load them first; where a "
            "pipeline's sequential offload put them there, use enable_model_cpu_offload here"
        )
    if num_labels and y is None:
        raise ValueError(f"{name} needs labels: give (N,) integers in 0..{num_labels - 1}")
    if not num_labels and y is not None:
        raise ValueError(f"{name} has no labels; call sample(noise=...) without them")
    if y is not None:
        _check_labels(name, num_labels, y)
    if noise is None:
        if y is None:
            raise ValueError(f"{name} has no labels, so the number of images comes from noise=(N, C, H, W)")
        return len(y)
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or not is_plain(noise) or not noise.ndim:
        got = f"{noise.dtype} on {noise.device}" if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a tensor of floats (N, C, H, W), got {got}")
    expected = (len(y) if y is not None else noise.shape[0], *backbone.input_shape)
    if tuple(noise.shape) != expected or not len(noise):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}, but {name} with these labels takes {expected}; "
            "give one noise image per label; a module takes images of another size if it is wrapped once more, "
            "l2c.wrap(..., input_shape=...), and the same graphs"
        )
    if not noise.float().isfinite().all():
        raise ValueError(
            f"noise must be finite in 32 bits, got NaN or infinity in image {_first_not_finite(noise.float())}; give "
            "standard normal noise, or seed=0 to have it drawn"
        )
    return noise.shape[0]


def _check_labels(name: str, num_labels: int, y: Tensor) -> None:
    whole = not (y.is_floating_point() or y.is_complex() or y.is_quantized or y.dtype == torch.bool)
    if y.ndim == 1 and not len(y):
        raise ValueError("labels are empty; give one for each image")
    if y.ndim != 1 or not whole or not is_plain(y):
        raise ValueError(f"labels must be integers of shape (N,), got {y.dtype} of shape {tuple(y.shape)}")
    y = y.long()  # what is unsigned knows no comparison
    wrong = y[(y < 0) | (y >= num_labels)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])} is out of range: {name} has the labels 0..{num_labels - 1}")


def check_images(images: Tensor) -> None:
    """Refuse images (N, C, H, W) that are not finite.

    Raises:
        NotFinite: if there is one; the message names the first.

    """
    if not images.isfinite().all():
        raise NotFinite(
            f"image {_first_not_finite(images)} of {len(images)} came out as NaN or infinity; look for such numbers "
            "in the weights, lower cfg_scale, or take precision='fp32'"
        )


def _first_not_finite(images: Tensor) -> int:
    return int((~images.isfinite()).flatten(1).any(dim=1).nonzero()[0])
