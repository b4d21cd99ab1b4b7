"""Precision and recall of a set of images by nearest neighbours (Kynkaanniemi et al., arXiv 1904.06991)."""

from __future__ import annotations

import torch
from torch import Tensor

K = 3
MAX_DISTANCES = 50_000_000  # at a time, 200 MB


def _chunks(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, MAX_DISTANCES // len(columns)))


def check_enough(count: int, k: int = K) -> None:
    """Refuse fewer images than precision and recall need, drawn or real ones."""
    if count <= k:
        raise ValueError(
            f"precision and recall look at the {k} nearest neighbours and need more than {k} images, got {count}; "
            "give more"
        )


def radii(features: Tensor, k: int = K) -> Tensor:
    """Return the distance (N,) of each of N features (N, F) to its k-th nearest other one.

    Raises:
        ValueError: if there are not more than k features.

    """
    check_enough(len(features), k)
    found, start = [], 0
    for chunk in _chunks(features, features):
        distances = torch.cdist(chunk, features)
        own = torch.arange(len(chunk), device=features.device)
        distances[own, start + own] = torch.inf
        found.append(distances.kthvalue(k, dim=1).values)
        start += len(chunk)
    return torch.cat(found)


def covered(points: Tensor, features: Tensor, radius: Tensor) -> float:
    """Return the share of points (M, F) that lie within `radius` (N,) of one of the features (N, F)."""
    inside = [(torch.cdist(chunk, features) <= radius).any(dim=1) for chunk in _chunks(points, features)]
    return float(torch.cat(inside).float().mean())


def precision_recall(images: Tensor, real: Tensor, k: int = K) -> tuple[float, float]:
    """Return precision and recall (eq. 2) of features (N, F) of images against those (M, F) of real ones.

    Precision is the share of images within the manifold of the real ones, recall the share of real ones within that
    of the images; a manifold is the union of balls that reach to the k-th neighbour.
    """
    images, real = images.float(), real.float()
    return covered(images, real, radii(real, k)), covered(real, images, radii(images, k))
