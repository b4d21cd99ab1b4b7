"""The interface of all solvers: evaluations announced in advance, and one loop that drives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from l2c.diffusion.prediction import data_of, noise_of, velocity_of
from l2c.diffusion.schedule import OWN, VARIANCE_PRESERVING, Schedule
from l2c.graph.checks import MAX_EVALUATIONS
from l2c.io.numbers import whole_number


@dataclass(frozen=True)
class Evaluation:
    """A request of a solver for one call of the network.

    Attributes:
        index: which evaluation, 0 = the noisiest.
        x: (N, C, H, W), the state to evaluate at.
        t: the timestep that the network is to be given.

    """

    index: int
    x: Tensor
    t: float


Model: TypeAlias = Callable[[Tensor, float], Tensor]
Trajectory: TypeAlias = Generator[Evaluation, Tensor, Tensor]
NoiseSource: TypeAlias = "torch.Generator | Callable[[tuple[int, ...]], Tensor]"


class Solver(ABC):
    """A way from noise to an image in a fixed number of network evaluations.

    A solver is a coroutine: it asks for one evaluation after the other and is sent the network's output,
    (N, C, H, W) what the schedule says that it predicts, or (N, 2 C, H, W) that and variance. Sampling and router
    training drive the same one.

    Attributes:
        name: the name of the solver in configs and cache graphs.
        schedules: names of the noise schedules that it can follow.
        schedule: the noise schedule of the weights.
        indices: (fractional) step index of each evaluation, noisiest first.
        steps: the evaluations of each solver step, in order; every evaluation belongs to one step.
        stochastic: whether steps add noise.
        own_times: whether what its steps do is known at its own times alone, so that nothing is carried from them.
        without_noise: the solvers that add no noise, words of the message of a refusal.

    """

    name: ClassVar[str]
    schedules: ClassVar[tuple[str, ...]] = (*VARIANCE_PRESERVING, OWN)
    stochastic: bool = False
    own_times: bool = False
    without_noise: ClassVar[str] = "ddim with eta 0, dpm_solver_2s or dpm_solver_2m"

    def __init__(self, schedule: Schedule, indices: tuple[float, ...], steps: tuple[tuple[int, ...], ...]) -> None:
        self.schedule = schedule
        self.indices = indices
        self.steps = steps
        # Not 0-d tensors but Python floats: a step multiplies by them without a transfer or a sync.
        self.timesteps = tuple(schedule.timestep(index) for index in indices)

    @classmethod
    def follows(cls, schedule: Schedule) -> bool:
        """Return whether the solver can follow a noise schedule."""
        return schedule.name in cls.schedules

    @classmethod
    def count(cls, schedule: Schedule, num_evaluations: int, *, least: int = 1) -> int:
        """Return a number of evaluations as an integer.

        Args:
            schedule: the noise schedule to follow.
            num_evaluations: the number.
            least: the smallest that the solver can do.

        Raises:
            ValueError: if it is no whole number in least..4096, or the solver cannot follow the schedule.

        """
        if not isinstance(schedule, Schedule) or not cls.follows(schedule):
            got = f"one named {schedule.name}" if isinstance(schedule, Schedule) else type(schedule).__name__
            raise ValueError(f"{cls.name} follows a noise schedule named {' or '.join(cls.schedules)}, got {got}")
        return whole_number(f"num_evaluations of {cls.name}", num_evaluations, low=least, high=MAX_EVALUATIONS)

    @property
    def num_evaluations(self) -> int:
        """Number of network calls of one trajectory."""
        return len(self.indices)

    def check_deterministic(self, reason: str) -> None:
        """Refuse a solver whose steps add noise.

        Args:
            reason: why noise is not allowed, the beginning of the message.

        Raises:
            ValueError: if steps add noise.

        """
        if self.stochastic:
            raise ValueError(f"{reason}, but {self.name} adds noise at its steps; take {self.without_noise}")

    @property
    def options(self) -> Mapping[str, float]:
        """The solver's own settings, as they are written into a cache graph."""
        return {}

    def step_of(self, evaluation: int) -> int:
        """Return the solver step that an evaluation belongs to."""
        return next(k for k, step in enumerate(self.steps) if evaluation in step)

    def marginal(self, evaluation: int) -> tuple[float, float]:
        """Return (alpha, sigma) of the state at which an evaluation takes place."""
        return self.schedule.marginal(self.indices[evaluation])

    def between(self, evaluation: int, share: float, x: Tensor, after: Tensor) -> tuple[Tensor, float] | None:
        """Return a state between those of an evaluation and of the next one, and its t; None where it is not known.

        It is made of the same data and noise as both: of `x` and `after` in the shares that give its alpha and sigma.

        Args:
            evaluation: one but the last.
            share: how far from it to the next one in time, 0 to 1.
            x: (N, C, H, W), the state at the evaluation.
            after: (N, C, H, W), the state at the next one.

        """
        return state_between(self.schedule, self.indices, self.timesteps, evaluation, share, (x, after))

    def predicted_noise(self, output: Tensor, x: Tensor, evaluation: int) -> Tensor:
        """Return the noise (N, C, H, W) that an output without variance at x (N, C, H, W) stands for."""
        return noise_of(self.schedule.prediction, output, x, *self.marginal(evaluation))

    def predicted_data(self, output: Tensor, x: Tensor, evaluation: int) -> Tensor:
        """Return the data (N, C, H, W) that an output at x (N, C, H, W) stands for."""
        output, _ = split_variance(output, x.shape[1])
        return data_of(self.schedule.prediction, output, x, *self.marginal(evaluation))

    def predicted_velocity(self, output: Tensor, x: Tensor, evaluation: int) -> Tensor:
        """Return the velocity (N, C, H, W) that an output at x (N, C, H, W) stands for."""
        output, _ = split_variance(output, x.shape[1])
        return velocity_of(self.schedule.prediction, output, x, *self.marginal(evaluation))

    @abstractmethod
    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from solver step `first_step` on, return the final x.

        Args:
            x: (N, C, H, W), the state at the first evaluation of that step.
            first_step: solver step to begin with; a multistep solver begins there without a history.
            generator: source of the noise of a stochastic solver: a generator, or a function of a shape (N, C, H, W).

        """

    def sample(
        self,
        model: Model,
        x: Tensor,
        *,
        generator: NoiseSource | None = None,
        on_evaluation: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the image (N, C, H, W) that `model(x, t)` leads to from noise x (N, C, H, W)."""
        trajectory = self.trajectory(x, generator=generator)
        request = next(trajectory)
        while True:
            output = model(request.x, request.t)
            if on_evaluation is not None:
                on_evaluation(request.index)
            try:
                request = trajectory.send(output)
            except StopIteration as stop:
                return stop.value


def state_between(
    schedule: Schedule,
    indices: Sequence[float],
    timesteps: Sequence[float],
    evaluation: int,
    share: float,
    states: tuple[Tensor, Tensor],
) -> tuple[Tensor, float]:
    """Return a state of a noise schedule between those of two evaluations, and its t; see `Solver.between`.

    Args:
        schedule: the noise schedule.
        indices: those of the evaluations in it, (E,).
        timesteps: t that the network is given there, (E,), a straight line over the indices.
        evaluation: the first of both.
        share: how far from it to the next one, 0 to 1.
        states: of both, (N, C, H, W).

    """
    index, t = ((1 - share) * of[evaluation] + share * of[evaluation + 1] for of in (indices, timesteps))
    alpha, sigma = schedule.marginal(index)
    (alpha_0, sigma_0), (alpha_1, sigma_1) = (schedule.marginal(indices[e]) for e in (evaluation, evaluation + 1))
    determinant = alpha_0 * sigma_1 - alpha_1 * sigma_0
    of_first = (alpha * sigma_1 - sigma * alpha_1) / determinant
    of_second = (sigma * alpha_0 - alpha * sigma_0) / determinant
    return of_first * states[0] + of_second * states[1], t


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split a network's output into its prediction (N, C, H, W) and, where it has one, variance (N, C, H, W)."""
    if output.shape[1] == 2 * channels:
        return output[:, :channels], output[:, channels:]
    return output, None


def draw_noise(like: Tensor, generator: NoiseSource | None) -> Tensor:
    """Return standard normal noise of a tensor's shape, drawn where its source lives."""
    if generator is not None and not isinstance(generator, torch.Generator):
        return generator(tuple(like.shape)).to(like)
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
