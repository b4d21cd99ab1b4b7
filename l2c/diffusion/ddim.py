"""DDIM and DDPM (ancestral) sampling on a respaced schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from l2c.diffusion.schedule import NoiseSchedule
from l2c.diffusion.solver import Evaluation, NoiseSource, Solver, Trajectory, draw_noise, split_variance
from l2c.io.numbers import finite_number


class DDIM(Solver):
    """Song et al., arXiv 2010.02502, eq. 12, with the respacing of the DiT code.

    Args:
        schedule: noise schedule of the weights.
        num_evaluations: number of evaluations, 2..T.
        eta: 0 is deterministic, 1 has the variance of DDPM.

    """

    name = "ddim"
    schedule: NoiseSchedule

    def __init__(self, schedule: NoiseSchedule, num_evaluations: int, *, eta: float = 0.0) -> None:
        eta, num_evaluations = finite_number("eta", eta, low=0, high=1), self.count(schedule, num_evaluations)
        super().__init__(
            schedule,
            tuple(map(float, schedule.respace(num_evaluations))),
            tuple((e,) for e in range(num_evaluations)),
        )
        self.eta = eta
        self.stochastic = eta > 0

    @property
    def options(self) -> Mapping[str, float]:
        """The amount of noise put back at each step."""
        return {"eta": self.eta}

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        abar = [*self.schedule.alphas_cumprod[[int(i) for i in self.indices]].tolist(), 1.0]
        for e in range(first_step, self.num_evaluations):
            output = yield Evaluation(e, x, self.timesteps[e])
            predicted, _ = split_variance(output, x.shape[1])
            eps = self.predicted_noise(predicted, x, e)
            now, after = abar[e], abar[e + 1]
            x_0 = math.sqrt(1 / now) * x - math.sqrt(1 / now - 1) * eps
            sigma = self.eta * math.sqrt((1 - after) / (1 - now) * (1 - now / after))  # eq. 16
            x = math.sqrt(after) * x_0 + math.sqrt(1 - after - sigma**2) * eps  # eq. 12
            if sigma > 0 and e < self.num_evaluations - 1:
                x = x + sigma * draw_noise(x, generator)
        return x


class DDPM(Solver):
    """Ho et al., arXiv 2006.11239, algorithm 2, with the learned variance of arXiv 2102.09672 where there is one.

    Args:
        schedule: noise schedule of the weights.
        num_evaluations: number of evaluations, 2..T.

    """

    name = "ddpm"
    schedule: NoiseSchedule
    stochastic = True

    def __init__(self, schedule: NoiseSchedule, num_evaluations: int) -> None:
        num_evaluations = self.count(schedule, num_evaluations)
        super().__init__(
            schedule,
            tuple(map(float, schedule.respace(num_evaluations))),
            tuple((e,) for e in range(num_evaluations)),
        )

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        abar = self.schedule.alphas_cumprod[[int(i) for i in self.indices]]
        abar_after = np.append(abar[1:], 1.0)
        betas = 1 - abar / abar_after
        posterior = betas * (1 - abar_after) / (1 - abar)
        # The last posterior variance is 0; its logarithm is that of the step before, as published.
        log_posterior = np.log(np.append(posterior[:-1], posterior[-2]))
        for e in range(first_step, self.num_evaluations):
            output = yield Evaluation(e, x, self.timesteps[e])
            predicted, variance = split_variance(output, x.shape[1])
            eps = self.predicted_noise(predicted, x, e)
            x_0 = math.sqrt(1 / abar[e]) * x - math.sqrt(1 / abar[e] - 1) * eps
            mean = (
                betas[e] * math.sqrt(abar_after[e]) / (1 - abar[e]) * x_0
                + (1 - abar_after[e]) * math.sqrt(1 - betas[e]) / (1 - abar[e]) * x
            )  # arXiv 2006.11239, eq. 7
            log_beta = math.log(betas[e])
            if variance is None:
                log_variance: Tensor | float = float(log_posterior[e])
            else:
                share = (variance + 1) / 2
                log_variance = share * log_beta + (1 - share) * float(log_posterior[e])  # arXiv 2102.09672, eq. 15
            x = mean
            if e < self.num_evaluations - 1:
                halved = 0.5 * log_variance
                scale = torch.exp(halved) if isinstance(halved, Tensor) else math.exp(halved)
                x = mean + scale * draw_noise(x, generator)
        return x
