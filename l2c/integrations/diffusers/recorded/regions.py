"""The part of a model's input that is noise at first and moves, beside what stays: pictures' latents, held frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Region = tuple[tuple[int, int, int], ...]  # (axis, start, size) of each axis of which it is a part
HELD = 1e-2  # of the largest difference of two draws: what differs less is held, with a little noise (Cosmos)


def region_of(one: Tensor, other: Tensor, sample: Tensor | None, times: TokenTimes | None = None) -> Region:
    """Return the region of a model's input that two draws of one prompt do not have in common.

    Args:
        one: the input at the first evaluation of a trajectory.
        other: that of a trajectory from other noise.
        sample: the noisy sample that the scheduler is given; None = not known. Where it is smaller along one axis
            alone, what follows it there in the input was drawn too (latents of a picture).
        times: timesteps of the tokens; those that are held are none of the region, though noise is added to them.

    """
    differ = torch.ones_like(one, dtype=torch.bool)
    if one.shape == other.shape:
        apart = (one - other).abs()
        differ = apart > HELD * apart.max()
    if times is not None and times.times.ndim in (one.ndim, one.ndim - 1):
        moving = (times.times == times.t).reshape(*times.times.shape, *[1] * (one.ndim - times.times.ndim))
        if all(a in (1, b) for a, b in zip(moving.shape, one.shape, strict=True)):
            differ = differ & moving
    region = tuple(_ranges(differ)) if bool(differ.any()) else ()
    noisy = narrowed(one, region)
    if sample is None or sample.ndim != noisy.ndim:
        return region
    larger = [axis for axis, (a, b) in enumerate(zip(noisy.shape, sample.shape, strict=True)) if axis and a != b]
    if len(larger) != 1 or noisy.shape[larger[0]] < sample.shape[larger[0]]:
        return region
    (axis,) = larger
    start = next((start for place, start, _ in region if place == axis), 0)
    return (*(part for part in region if part[0] != axis), (axis, start, sample.shape[axis]))


def region_beside(x: Tensor, other: Tensor, region: Region) -> Region:
    """Return the region of an input that has the same part as another one in its region.

    It is the whole input where that has the shape of the part (a guidance branch that is given no text beside it).
    """
    whole = x.shape[1:] == narrowed(other, region).shape[1:] and x.shape[1:] != other.shape[1:]
    return () if whole else region


def _ranges(differ: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield the range along each axis but the first outside which nothing differs, where it is not the whole axis."""
    for axis in range(1, differ.ndim):
        places = differ.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        start, end = int(places[0]), int(places[-1]) + 1
        if end - start < differ.shape[axis]:
            yield axis, start, end - start


def narrowed(x: Tensor, region: Region) -> Tensor:
    """Return a region of a tensor; along axes that are no larger than the region all of it."""
    for axis, start, size in region:
        if axis < x.ndim and x.shape[axis] > size:
            x = x.narrow(axis, start, size)
    return x


def blank(x: Tensor, region: Region) -> Tensor:
    """Return a copy of a tensor with zeros in a region."""
    x = x.clone()
    narrowed(x, region).zero_()
    return x


def placed(whole: Tensor, x: Tensor, region: Region) -> Tensor:
    """Return a tensor with other values in a region."""
    if not region:
        return x
    (axis, start, size), *inner = region
    before, part, after = whole.tensor_split((start, start + size), dim=axis)
    return torch.cat([before, placed(part, x, tuple(inner)), after], dim=axis)


@dataclass(frozen=True)
class TokenTimes:
    """Timesteps of the tokens or frames of a row, some of which are held below the others'.

    Attributes:
        times: those recorded (1, ...), or (M,) of the tokens of a model that takes one row a call.
        t: the noisiest of them.

    """

    times: Tensor
    t: float

    @classmethod
    def of(cls, given: Tensor | float, t: float, rows: int) -> TokenTimes | None:
        """Return those of a call of some rows that is given timesteps (N, ...) or (M,); None where a row has one."""
        if not isinstance(given, Tensor) or given.ndim == 0 or (given.ndim == 1 and len(given) in (1, rows)):
            return None
        return cls((given if given.ndim == 1 else given[:1]).detach().clone(), t)

    def at(self, t: Tensor) -> Tensor:
        """Return the timesteps (N, ...) of rows at t (N,): t itself, but where they are held below it."""
        held = self.times.to(t)
        t = t.reshape(-1, *[1] * (held.ndim - 1))
        return torch.where(held == self.t, t, torch.minimum(t, held))
