"""Inputs that depend on timestep and label only, computed ahead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone

AHEAD_BYTES = 256 * 2**20


class Conditions:
    """The `condition` of each evaluation, worked out for as many at a time as fit into memory.

    A modulation is a product of few rows with a large matrix: its time is that of reading the matrix, so one product
    for twenty evaluations costs little more than one for one. On a CPU equal labels are computed once, such as the
    null label of guidance in half of the rows; elsewhere finding equal labels would wait for the device.

    Args:
        backbone: the network.
        y: (N,) labels, the null label included; None for a backbone without labels.
        timesteps: t of each evaluation.
        count: N.
        ahead_bytes: memory that may be used for evaluations ahead; one evaluation's is always taken.

    """

    def __init__(
        self,
        backbone: Backbone,
        y: Tensor | None,
        timesteps: Sequence[float],
        count: int,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self.backbone = backbone
        self.y = y
        self.timesteps = tuple(timesteps)
        self.count = count
        self._place: Tensor | None = None  # (N,), of each label among the distinct ones; None = as given
        if y is not None and y.ndim == 1 and y.device.type == "cpu" and not y.is_floating_point():
            distinct, place = torch.unique(y, return_inverse=True)
            if len(distinct) < len(y):
                self.y, self.count, self._place = distinct, len(distinct), place
        parameter = next(backbone.parameters())
        self._device = parameter.device
        size = backbone.condition_size * self.count * parameter.element_size()
        self.ahead = max(1, ahead_bytes // size)  # evaluations worked out at a time
        self._first = 0
        self._parts: tuple[tuple[Tensor, ...], ...] = ()  # of each evaluation from the first on
        self._spread: tuple[Tensor, ...] = ()  # of the evaluation asked for last, in memory that serves the next

    def at(self, evaluation: int) -> tuple[Tensor, ...]:
        """Return the condition of an evaluation; each part begins with N, and holds until the next is asked for."""
        if not 0 <= evaluation - self._first < len(self._parts):
            self._work_out(evaluation)
        parts = self._parts[evaluation - self._first]
        if self._place is None:
            return parts
        if not self._spread:
            self._spread = tuple(part.new_empty(len(self._place), *part.shape[1:]) for part in parts)
        for part, whole in zip(parts, self._spread, strict=True):
            torch.index_select(part, 0, self._place, out=whole)
        return self._spread

    def _work_out(self, first: int) -> None:
        chunk = self.timesteps[first : first + self.ahead]
        t = torch.cat([torch.full((self.count,), time, device=self._device) for time in chunk])
        y = None if self.y is None else self.y.repeat(len(chunk), *(1,) * (self.y.ndim - 1))
        self._parts = ()  # before the next ones are made
        parts = self.backbone.condition(t, y)
        self._parts = tuple(zip(*(part.split(self.count) for part in parts), strict=True))
        self._first = first
