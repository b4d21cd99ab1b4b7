"""A diffusers scheduler as a solver: the same steps, asked for one evaluation at a time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.diffusion import Evaluation, FlowSchedule, NoiseSchedule, Solver, Trajectory
from l2c.diffusion.schedule import OWN
from l2c.diffusion.solver import NoiseSource, split_variance, state_between
from l2c.graph.binding import draws_noise
from l2c.graph.checks import out_of_order

CLOSE = 2e-3  # of alpha and sigma, which schedulers look up in tables
LEAST = 2**-24  # of alpha squared, in the place of zero terminal signal


@dataclass(frozen=True)
class Preconditioning:
    """What a pipeline does itself between scheduler and network (Sana Sprint, Cosmos).

    At evaluation e the network is given `inputs[e] * state`, the scheduler `outputs[e] * prediction + states[e] *
    state`.

    Attributes:
        start: the first state, in units of noise of variance 1; None = as the scheduler has it.
        inputs: factors (E,) of the states that the network is given.
        outputs: factors (E,) of its predictions.
        states: factors (E,) of the states beside them.

    """

    start: float | None
    inputs: tuple[float, ...]
    outputs: tuple[float, ...]
    states: tuple[float, ...]


class SchedulerSolver(Solver):
    """The steps of a scheduler whose timesteps are set.

    Args:
        scheduler: copied, as it stands.
        timesteps: t that the model is given at each of the scheduler's evaluations, which some pipelines scale.
        first: evaluation of the scheduler that trajectories begin at (image-to-image).
        around: what the pipeline does between scheduler and network; None = what the scheduler does alone.
        rowed: whether the scheduler takes a timestep for each row (Stable Cascade's).

    Raises:
        ValueError: if the scheduler evaluates twice at one timestep.

    """

    without_noise = "DDIMScheduler, DPMSolverMultistepScheduler or, of a flow, FlowMatchEulerDiscreteScheduler"

    def __init__(
        self,
        scheduler: Any,
        timesteps: Sequence[float],
        *,
        first: int = 0,
        around: Preconditioning | None = None,
        rowed: bool = False,
    ) -> None:
        name = type(scheduler).__name__
        rising = timesteps[-1] > timesteps[0]  # of models that count from noise 0 to image 1
        if wrong := out_of_order(timesteps, rising=rising):
            raise ValueError(
                f"{name} evaluates at t = {wrong[1]:g} after {wrong[0]:g}, but a cache graph needs one evaluation at "
                "each of timesteps in one direction; take a scheduler of one evaluation a step, e.g. "
                "DPMSolverMultistepScheduler"
            )
        self.name = name  # type: ignore[misc]
        self.schedule = NoiseSchedule()
        self.timesteps = self.indices = tuple(timesteps[first:])
        self.steps = tuple((e,) for e in range(len(self.timesteps)))
        self._scheduler = copy.deepcopy(scheduler)
        self._first = first
        self.around, self.rowed = around, rowed
        self.own_times = around is not None
        if hasattr(scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(first)
        if hasattr(scheduler, "_step_index"):
            self._scheduler._step_index = None  # where a pipeline began (image-to-image)
        self._takes = set(inspect.signature(scheduler.step).parameters)
        self.stochastic = adds_noise(scheduler)

    def between(self, evaluation: int, share: float, x: Tensor, after: Tensor) -> tuple[Tensor, float] | None:
        """Return a state between those of two evaluations; None where `noising_of` is. See `Solver.between`."""
        if self._noising is None:
            return None
        return state_between(*self._noising, self.timesteps, evaluation, share, (x, after))

    @cached_property
    def _noising(self) -> tuple[NoiseSchedule | FlowSchedule, tuple[float, ...]] | None:
        return None if self.around is not None else noising_of(self._scheduler, self.timesteps, self._first)

    def trajectory(self, x: Tensor, *, first_step: int = 0, generator: NoiseSource | None = None) -> Trajectory:
        """Yield the evaluations from `first_step` on, return the final x; see `Solver.trajectory`."""
        scheduler = copy.deepcopy(self._scheduler)  # multistep schedulers remember
        around = self.around
        if first_step == 0:
            own = None if around is None else around.start
            x = x * (getattr(scheduler, "init_noise_sigma", 1.0) if own is None else own)  # flows have none
        options: dict[str, Any] = {"generator": _generators(generator, len(x))} if "generator" in self._takes else {}
        before: dict[str, Any] = {"old_pred_original_sample": None, "timestep_back": None}  # of the step before
        for e in range(first_step, self.num_evaluations):
            t = scheduler.timesteps[self._first + e]
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            scaled = scaled if around is None else around.inputs[e] * x
            output = yield Evaluation(e, scaled, self.timesteps[e])
            predicted, _ = split_variance(output, x.shape[1])
            if around is not None:
                predicted = around.outputs[e] * predicted + around.states[e] * x
            t = t.expand(len(x)) if self.rowed else t
            times = scheduler.timesteps[self._first + e + 1 :]
            after = {"prev_timestep": times[0] if len(times) else None}  # the step after, which is nearer to the data
            history = {name: value for name, value in {**before, **after}.items() if name in self._takes}
            given = {"model_output": predicted, "timestep": t, "sample": x, "return_dict": False}
            x, *others = scheduler.step(**given, **options, **history)
            before = {"old_pred_original_sample": others[0] if others else None, "timestep_back": t}
        return x


def noising_of(
    scheduler: Any, timesteps: Sequence[float], first: int = 0
) -> tuple[NoiseSchedule | FlowSchedule, tuple[float, ...]] | None:
    """Return the noise schedule of the states that a scheduler gives the network, and their indices in it.

    None where they follow no schedule that we know: what the scheduler itself makes of data and noise at each
    evaluation (`add_noise`, `scale_noise`) decides.

    Args:
        scheduler: its timesteps are set.
        timesteps: t (E,) that the network is given, from the evaluation `first` on.
        first: evaluation of the scheduler that they begin at.

    """
    evaluations = range(first, first + len(timesteps))
    made = _marginals(scheduler, evaluations)
    if made is None or len(timesteps) < 2:
        return None
    for schedule, indices in _candidates(scheduler, evaluations):
        slope, offset = np.polyfit(indices, timesteps, 1)
        bent = np.abs(slope * np.array(indices) + offset - timesteps).max()
        if bent <= abs(slope) and np.allclose([schedule.marginal(i) for i in indices], made, atol=CLOSE):
            return schedule, indices
    return None


def _candidates(
    scheduler: Any, evaluations: Sequence[int]
) -> Iterator[tuple[NoiseSchedule | FlowSchedule, tuple[float, ...]]]:
    """Yield the schedules that a scheduler's attributes speak of, with the indices of its evaluations."""
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is not None and not scheduler.config.get("use_flow_sigmas"):
        abar = abar.double().clamp(min=LEAST)
        betas = 1 - abar / torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
        own = NoiseSchedule(OWN, 0, len(betas), given=tuple(betas.tolist()))
        yield own, tuple(float(scheduler.timesteps[e]) for e in evaluations)
    sigmas = getattr(scheduler, "sigmas", ())
    if len(sigmas) > evaluations[-1]:
        flow = FlowSchedule()
        yield flow, tuple(flow.num_steps * float(sigmas[e]) for e in evaluations)


def _marginals(scheduler: Any, evaluations: Sequence[int]) -> list[tuple[float, float]] | None:
    """Return what the network is given of data 1 and of noise 1 at evaluations, None where that is not told."""
    own = copy.deepcopy(scheduler)
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)

    def state(data: Tensor, noise: Tensor, t: Tensor) -> float:
        for name in ("_begin_index", "_step_index"):
            setattr(own, name, None)
        x = (
            own.add_noise(data, noise, t[None])
            if hasattr(own, "add_noise")
            else own.scale_noise(data, t[None], noise)
        )
        return float(own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x)

    try:
        times = [own.timesteps[e] for e in evaluations]
        return [(state(one, none, t), state(none, one, t)) for t in times]
    except (AttributeError, NotImplementedError, TypeError):  # it has no such method, or one of another form
        return None


def prediction_of(scheduler: Any) -> str | None:
    """Return what a scheduler takes predictions for, `epsilon` or `v_prediction` for example; None = not told."""
    told: str | None = getattr(scheduler, "config", {}).get("prediction_type")
    return told


def adds_noise(scheduler: Any, *, eta: float = 0.0) -> bool:
    """Return whether a scheduler adds noise at its steps.

    Args:
        scheduler: scheduler of a diffusers pipeline.
        eta: eta of the pipeline's call; only used by schedulers whose steps take it.

    """
    if "eta" not in inspect.signature(scheduler.step).parameters:
        eta = 0.0
    kind = f"{type(scheduler).__name__} {scheduler.config.get('algorithm_type')}"
    return draws_noise(kind, eta) or bool(scheduler.config.get("stochastic_sampling"))


def _generators(source: NoiseSource | None, count: int) -> torch.Generator | list[torch.Generator] | None:
    """Return the generators that schedulers draw from, one per image for a source with a stream per image."""
    if source is None or isinstance(source, torch.Generator):
        return source
    seeds = source((count, 1)).flatten().view(torch.int32).tolist()
    return [torch.Generator().manual_seed(seed & 0xFFFFFFFF) for seed in seeds]
