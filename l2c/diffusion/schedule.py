"""Variance-preserving noise schedules: x_t = alpha_t x_0 + sigma_t eps.

Times are training steps, counted from 0 (least noisy) to T - 1; `index` may be fractional, then log alpha is
interpolated linearly (Lu et al., arXiv 2206.00927, appendix D.4). `l = log(alpha / sigma)` is the half-logSNR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

SCHEDULES = ("linear", "scaled_linear")


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete schedule and the way its network counts time.

    Attributes:
        name: `linear` (beta from 1e-4 to 0.02, DDPM) or `scaled_linear` (sqrt(beta) linear from 0.00085 to
            0.012, latent diffusion).
        first_timestep: the t that the network is given at index 0.
        num_steps: number T of training steps.

    """

    name: str = "linear"
    first_timestep: int = 0
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"unknown noise schedule {self.name!r}; known are {', '.join(SCHEDULES)}")

    @cached_property
    def betas(self) -> npt.NDArray[np.floating]:
        """Variance added at each step, (T,)."""
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

    def timestep(self, index: float) -> float:
        """Return the t that the network is given at a (fractional) step index."""
        return index + self.first_timestep

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
