"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps. `l = log(alpha / sigma)` is the half-logSNR.

Variance-preserving ones count training steps from 0 (least noisy) to T - 1; `index` may be fractional, then log alpha
is interpolated linearly (Lu et al., arXiv 2206.00927, appendix D.4). A rectified flow's index is T s, s in [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.diffusion.prediction import check_prediction
from l2c.graph.given import floats
from l2c.io.names import chosen
from l2c.io.numbers import whole_number
from l2c.io.seeds import Stream

VARIANCE_PRESERVING = ("linear", "scaled_linear", "cosine")
OWN = "own"  # the name of one that is given by its betas
FLOW = "flow"
SCHEDULES = (*VARIANCE_PRESERVING, FLOW)
UNIFORM_SHARE = 0.25
MOST_STEPS = 10**6  # of training; published weights have 1000


@dataclass(frozen=True)
class Schedule(ABC):
    """A schedule, the way its network counts time, and what the network predicts.

    Attributes:
        name: one of `SCHEDULES`, or `own`.
        first_timestep: the t that the network is given at index 0.
        num_steps: T; indices and timesteps are counted in units of 1 / T.
        prediction: `noise`, `v`, `data` or `flow`; see `l2c.diffusion.prediction`.

    """

    name: str = "linear"
    first_timestep: int = 0
    num_steps: int = 1000
    prediction: str = "noise"

    def __post_init__(self) -> None:
        chosen("noise schedule", self.name, (*SCHEDULES, OWN))
        check_prediction(self.prediction)
        for name, low, high in (("first_timestep", 0, 1000), ("num_steps", 2, MOST_STEPS)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low=low, high=high))

    def timestep(self, index: float) -> float:
        """Return the t that the network is given at a (fractional) index."""
        return index + self.first_timestep

    @abstractmethod
    def marginal(self, index: float) -> tuple[float, float]:
        """Return (alpha, sigma) at a (fractional) index."""

    @abstractmethod
    def half_log_snr(self, index: float) -> float:
        """Return l = log(alpha / sigma) at a (fractional) index."""

    @abstractmethod
    def draw(self, count: int, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Return random times to train at: t as the network is given them, alpha and sigma, (count,) each."""


@dataclass(frozen=True)
class NoiseSchedule(Schedule):
    """A variance-preserving schedule of T discrete steps.

    Its name is `linear` (beta from 1e-4 to 0.02, DDPM), `scaled_linear` (sqrt(beta) linear from 0.00085 to 0.012,
    latent diffusion), `cosine` (Nichol & Dhariwal, arXiv 2102.09672, eq. 17, beta at most 0.999) or `own`.

    Attributes:
        given: (T,) betas of the schedule `own`.

    """

    given: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "given", floats("given", self.given))
        if len(self.given) != (self.num_steps if self.name == OWN else 0):
            raise ValueError(
                f"the noise schedule {self.name} of {self.num_steps} steps has {len(self.given)} betas; {OWN} alone "
                "has them, one for each step"
            )

    @cached_property
    def betas(self) -> npt.NDArray[np.floating]:
        """Variance added at each step, (T,)."""
        if self.name == OWN:
            return np.array(self.given)
        if self.name == "cosine":
            level = np.cos((np.arange(self.num_steps + 1) / self.num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - level[1:] / level[:-1], 0.999)
        if self.name == "linear":
            scale = 1000 / self.num_steps
            return np.linspace(scale * 1e-4, scale * 0.02, self.num_steps)
        return np.linspace(0.00085**0.5, 0.012**0.5, self.num_steps) ** 2

    @cached_property
    def alphas_cumprod(self) -> npt.NDArray[np.floating]:
        """Signal variance alpha^2 at each step, (T,)."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def _log_alphas(self) -> npt.NDArray[np.floating]:
        return 0.5 * np.log(self.alphas_cumprod)

    def draw(self, count: int, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Return steps drawn uniformly; see `Schedule.draw`."""
        abar = torch.from_numpy(self.alphas_cumprod)
        index = stream.integers(self.num_steps, count)
        return index + self.first_timestep, abar.sqrt().float()[index], (1 - abar).sqrt().float()[index]

    def log_alpha(self, index: float) -> float:
        """Return log alpha at a (fractional) step index in [0, T - 1]."""
        return float(np.interp(index, np.arange(self.num_steps), self._log_alphas))

    def marginal(self, index: float) -> tuple[float, float]:
        """Return (alpha, sigma) at a (fractional) step index."""
        log_alpha = self.log_alpha(index)
        return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))

    def half_log_snr(self, index: float) -> float:
        """Return l = log(alpha / sigma) at a (fractional) step index."""
        log_alpha = self.log_alpha(index)
        return log_alpha - 0.5 * math.log(-math.expm1(2 * log_alpha))

    def index_of(self, half_log_snr: float) -> float:
        """Return the (fractional) step index with the given half-logSNR."""
        log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * half_log_snr)
        return float(np.interp(log_alpha, self._log_alphas[::-1], np.arange(self.num_steps)[::-1]))

    def respace(self, num_evaluations: int) -> tuple[int, ...]:
        """Return evenly spread step indices from T - 1 down to 0, as the DiT code spaces them.

        20 of 1000: 999, 946, 894, ..., 53, 0.
        """
        if not 2 <= num_evaluations <= self.num_steps:
            raise ValueError(
                f"num_evaluations must lie in 2..{self.num_steps} for this solver, got {num_evaluations}"
            )
        stride = (self.num_steps - 1) / (num_evaluations - 1)
        indices, position = [], 0.0
        for _ in range(num_evaluations):  # accumulated as there: it breaks ties between two indices in the same way
            indices.append(round(position))
            position += stride
        return tuple(reversed(indices))


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """The straight path of a rectified flow: alpha = 1 - s, sigma = s, index T s (Liu et al., arXiv 2209.03003)."""

    name: str = FLOW
    prediction: str = "flow"

    def marginal(self, index: float) -> tuple[float, float]:
        """Return (alpha, sigma) at an index in [0, T]."""
        s = index / self.num_steps
        return 1 - s, s

    def half_log_snr(self, index: float) -> float:
        """Return l = log(alpha / sigma) at an index in [0, T]; infinite at the ends."""
        alpha, sigma = self.marginal(index)
        if alpha <= 0 or sigma <= 0:
            return math.inf if sigma <= 0 else -math.inf
        return math.log(alpha) - math.log(sigma)

    def draw(self, count: int, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Return a quarter of times uniform, the others logit-normal (Esser et al., arXiv 2403.03206, section 3.1).

        The logit-normal alone leaves out the ends, at one of which sampling starts. See `Schedule.draw`.
        """
        uniform = stream.uniform(count)
        s = torch.sigmoid(stream((count,)))
        s = torch.where(stream.uniform(count) < UNIFORM_SHARE, uniform, s)
        return self.num_steps * s + self.first_timestep, 1 - s, s


class CountsTime(Protocol):
    """The conventions of a backbone from which a schedule is made."""

    @property
    def schedule(self) -> str | tuple[float, ...]:
        """Name of the schedule, or its betas."""

    @property
    def first_timestep(self) -> int:
        """See `Schedule`."""

    @property
    def prediction(self) -> str:
        """See `Schedule`."""


def schedule_of(conventions: CountsTime) -> NoiseSchedule | FlowSchedule:
    """Return the schedule that a backbone's conventions name.

    Raises:
        ValueError: if the schedule or prediction is unknown.

    """
    name, first, prediction = conventions.schedule, conventions.first_timestep, conventions.prediction
    if not isinstance(name, str):
        return NoiseSchedule(OWN, first, len(name), prediction, name)
    return (FlowSchedule if name == FLOW else NoiseSchedule)(name, first, prediction=prediction)


def named_or_betas(schedule: Any) -> str | tuple[float, ...]:
    """Return a schedule's name, or the betas (T,) of a schedule of one's own as Python's floats.

    Raises:
        ValueError: if the name is unknown, or the betas are not at least 2 numbers between 0 and 1.

    """
    if isinstance(schedule, str):
        return chosen("noise schedule", schedule, SCHEDULES)
    betas = floats("a noise schedule that is no name", schedule)
    wrong = next((beta for beta in betas if not 0 < beta < 1), None)
    if len(betas) < 2 or wrong is not None:
        raise ValueError(
            "the betas of a noise schedule must be at least 2 numbers between 0 and 1, one for each training step, "
            f"the least noisy first, got {f'{len(betas)} of them' if wrong is None else f'{wrong:g}'}; give 0.9999 "
            "where the last one is 1"
        )
    return betas
