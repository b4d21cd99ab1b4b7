"""Solvers of a rectified flow x_s = (1 - s) x_0 + s eps, whose network predicts the velocity u = eps - x_0.

Times s fall from 1 (noise) to 0; a shift k > 1 spends more of the evaluations on noisy states,
s -> k s / (1 + (k - 1) s) (Esser et al., arXiv 2403.03206, eq. 23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from l2c.diffusion.schedule import FLOW, FlowSchedule
from l2c.diffusion.solver import Evaluation, NoiseSource, Solver, Trajectory
from l2c.graph.checks import MAX_OPTION
from l2c.io.numbers import finite_number

FIRST_FINITE = 0.999  # the noisiest s at which log(alpha / sigma) is taken, as in diffusers


class FlowSolver(Solver):
    """Base of the solvers of flows: evaluations at shifted times, noisiest first, and the end at s = 0.

    Args:
        schedule: the flow of the weights.
        times: s of each evaluation before the shift, decreasing, in (0, 1].
        shift: k in [1e-6, 1e6]; 1 leaves the times alone, 3 is common.

    """

    schedules = (FLOW,)

    def __init__(self, schedule: FlowSchedule, times: Sequence[float], shift: float) -> None:
        shift = finite_number("shift", shift, low=1 / MAX_OPTION, high=MAX_OPTION)
        shifted = [shift * s / (1 + (shift - 1) * s) for s in times]
        super().__init__(
            schedule, tuple(schedule.num_steps * s for s in shifted), tuple((e,) for e in range(len(shifted)))
        )
        self.shift = shift
        self._levels = [*shifted, 0.0]  # s at the start of each step, and at the end

    @property
    def options(self) -> Mapping[str, float]:
        """The shift of the times."""
        return {"shift": self.shift}


class FlowEuler(FlowSolver):
    """Euler's method: steps along the predicted velocity, from s = 1 on, evenly spread before the shift.

    Args:
        schedule: the flow of the weights.
        num_evaluations: number of evaluations, at least 1.
        shift: see `FlowSolver`.

    """

    name = "flow_euler"

    def __init__(self, schedule: FlowSchedule, num_evaluations: int, *, shift: float = 1.0) -> None:
        num_evaluations = self.count(schedule, num_evaluations)
        super().__init__(schedule, [1 - e / num_evaluations for e in range(num_evaluations)], shift)

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        for e in range(first_step, self.num_evaluations):
            output = yield Evaluation(e, x, self.timesteps[e])
            x = x + (self._levels[e + 1] - self._levels[e]) * self.predicted_velocity(output, x, e)
        return x


class FlowDPM2M(FlowSolver):
    """DPM-Solver++ of second order (Lu et al., arXiv 2211.01095, algorithm 2) on the path of a flow.

    Times are evenly spread from s = 0.999 on before the shift; the first step and the last one, which ends at s = 0,
    are of first order. l is the half-logSNR log((1 - s) / s).

    Args:
        schedule: the flow of the weights.
        num_evaluations: number of evaluations, at least 2.
        shift: see `FlowSolver`.

    """

    name = "flow_dpm_2m"

    def __init__(self, schedule: FlowSchedule, num_evaluations: int, *, shift: float = 1.0) -> None:
        num_evaluations = self.count(schedule, num_evaluations, least=2)
        times = np.linspace(FIRST_FINITE, 0, num_evaluations + 1)[:-1]
        super().__init__(schedule, times.tolist(), shift)

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        half_log_snr = [math.log1p(-s) - math.log(s) if s > 0 else math.inf for s in self._levels]
        x_0_before: Tensor | None = None
        for e in range(first_step, self.num_evaluations):
            output = yield Evaluation(e, x, self.timesteps[e])
            x_0 = data = self.predicted_data(output, x, e)
            h = half_log_snr[e + 1] - half_log_snr[e]
            if x_0_before is not None and math.isfinite(h):
                r = (half_log_snr[e] - half_log_snr[e - 1]) / h
                data = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_0_before
            s, s_next = self._levels[e], self._levels[e + 1]
            x = s_next / s * x - (1 - s_next) * math.expm1(-h) * data
            x_0_before = x_0
        return x
