"""The scheduler of a recorded pipeline as a solver, and the turns that its denoisers take in its steps."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from l2c.integrations.diffusers.recorded.answers import Answers
from l2c.integrations.diffusers.recorded.preconditioning import preconditioning_of
from l2c.integrations.diffusers.recorded.recording import Recording
from l2c.integrations.diffusers.recorded.steps import recorded_call
from l2c.integrations.diffusers.recorded.turns import Turns, check_turns, turns_of
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver
from l2c.integrations.diffusers.timesteps import trajectory_of


def solvers_of(
    pipe: Any, recording: Recording, *, fewer_steps: bool
) -> tuple[SchedulerSolver, dict[int, SchedulerSolver] | None, Turns]:
    """Return the pipeline's scheduler as it stands, that at fewer steps if wanted, and the denoisers' turns."""
    timesteps, end = trajectory_of(pipe, recording.calls[0].t)
    solver = SchedulerSolver(pipe.scheduler, timesteps[:end], around=recording.around, rowed=recording.rowed)
    answers = Answers()
    turns = turns_of(pipe, recording.given, end, answers)
    check_turns(turns, type(pipe).__name__)
    if not fewer_steps:
        return solver, None, turns
    return solver, *_at_fewer_steps(pipe, recording.model, recording, turns, answers)


def _at_fewer_steps(
    pipe: Any, model: nn.Module, recording: Recording, turns: Turns, answers: Answers
) -> tuple[dict[int, SchedulerSolver], Turns]:
    """Return the pipeline's scheduler at 2 steps and on, fewer than its settings say, and turns at their times too.

    The prompt is encoded once.
    """
    found: dict[int, SchedulerSolver] = {}
    for count in range(2, recording.given["num_inference_steps"]):
        settings = {**recording.given, "num_inference_steps": count}
        call = recorded_call(pipe, model, **settings).split(recording.calls[0].region)
        around = None if recording.around is None else preconditioning_of(pipe, model, call, settings)
        timesteps, end = trajectory_of(pipe, call.t)
        if around is None and recording.around is not None:
            continue
        with contextlib.suppress(ValueError):  # steps that a graph could not follow: no baseline at this number
            if turns.experts:
                turns = turns.joined(turns_of(pipe, settings, end, answers))
            found[count] = SchedulerSolver(pipe.scheduler, timesteps[:end], around=around, rowed=recording.rowed)
    return found, turns
