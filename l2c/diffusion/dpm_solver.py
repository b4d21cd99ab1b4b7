"""DPM-Solver++ of second order (Lu et al., arXiv 2211.01095), data prediction, times uniform in t.

l is the half-logSNR, h the step in l, x_0(s) the data that the network predicts at s.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from torch import Tensor

from l2c.diffusion.schedule import NoiseSchedule
from l2c.diffusion.solver import Evaluation, NoiseSource, Solver, Trajectory


def _first_order(schedule: NoiseSchedule, x: Tensor, x_0: Tensor, s: float, t: float) -> Tensor:
    """Move x from index s to t with constant x_0 (DDIM in data prediction), eq. 4.1."""
    (_, sigma_s), (alpha_t, sigma_t) = schedule.marginal(s), schedule.marginal(t)
    h = schedule.half_log_snr(t) - schedule.half_log_snr(s)
    return sigma_t / sigma_s * x - alpha_t * math.expm1(-h) * x_0


class DPMSolver2S(Solver):
    """Single-step solver: two evaluations a step, at its start and at the middle in half-logSNR.

    This is the setting of U-ViT's latent models. An odd number of evaluations ends with a first-order step.

    Args:
        schedule: noise schedule of the weights.
        num_evaluations: number of evaluations, at least 2.

    """

    name = "dpm_solver_2s"
    schedule: NoiseSchedule

    def __init__(self, schedule: NoiseSchedule, num_evaluations: int) -> None:
        num_evaluations = self.count(schedule, num_evaluations, least=2)
        num_steps = (num_evaluations + 1) // 2
        self._bounds = np.linspace(schedule.num_steps - 1, 0, num_steps + 1).tolist()
        indices: list[float] = []
        steps: list[tuple[int, ...]] = []
        for k in range(num_steps):
            s, t = self._bounds[k], self._bounds[k + 1]
            steps.append((len(indices),))
            indices.append(s)
            if len(indices) < num_evaluations:
                middle = 0.5 * (schedule.half_log_snr(s) + schedule.half_log_snr(t))
                steps[-1] += (len(indices),)
                indices.append(schedule.index_of(middle))
        super().__init__(schedule, tuple(indices), tuple(steps))

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        for k in range(first_step, len(self.steps)):
            s, t = self._bounds[k], self._bounds[k + 1]
            first, *second = self.steps[k]
            output = yield Evaluation(first, x, self.timesteps[first])
            x_0 = self.predicted_data(output, x, first)
            x_next = _first_order(self.schedule, x, x_0, s, t)
            if second:
                middle = self.indices[second[0]]
                x_middle = _first_order(self.schedule, x, x_0, s, middle)
                output = yield Evaluation(second[0], x_middle, self.timesteps[second[0]])
                x_0_middle = self.predicted_data(output, x_middle, second[0])
                h = self.schedule.half_log_snr(t) - self.schedule.half_log_snr(s)
                alpha_t, _ = self.schedule.marginal(t)
                x_next = x_next - alpha_t * math.expm1(-h) * (x_0_middle - x_0)  # algorithm 1, r = 1/2
            x = x_next
        return x


class DPMSolver2M(Solver):
    """Multistep solver: one evaluation a step, the second order from the step before.

    The first step and the last one are of first order. In l the last step, to index 0, is 2 to 5 times as long as
    the one before, all others at most 1.7 times: the line through two predictions is not followed that far. (Of
    diffusers' DPMSolverMultistepScheduler it is the setting `euler_at_final`; its default ends so below 15
    evaluations only.)

    Args:
        schedule: noise schedule of the weights.
        num_evaluations: number of evaluations, at least 2.

    """

    name = "dpm_solver_2m"
    schedule: NoiseSchedule

    def __init__(self, schedule: NoiseSchedule, num_evaluations: int) -> None:
        num_evaluations = self.count(schedule, num_evaluations, least=2)
        self._bounds = np.linspace(schedule.num_steps - 1, 0, num_evaluations + 1).tolist()
        super().__init__(schedule, tuple(self._bounds[:-1]), tuple((e,) for e in range(num_evaluations)))

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        half_log_snr = [self.schedule.half_log_snr(index) for index in self._bounds]
        h = [after - before for before, after in pairwise(half_log_snr)]
        x_0_before: Tensor | None = None
        for e in range(first_step, self.num_evaluations):
            output = yield Evaluation(e, x, self.timesteps[e])
            x_0 = data = self.predicted_data(output, x, e)
            if x_0_before is not None and e < self.num_evaluations - 1:
                r = h[e - 1] / h[e]
                data = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_0_before  # algorithm 2
            x = _first_order(self.schedule, x, data, self._bounds[e], self._bounds[e + 1])
            x_0_before = x_0
        return x
