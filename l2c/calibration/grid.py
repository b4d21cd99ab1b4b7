"""The evaluations of a solver as responses see them: their times, and how far an output moves the state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from l2c.diffusion import Solver
from l2c.graph.checks import MAX_EVALUATIONS, out_of_order
from l2c.io.json_fields import items, known_fields
from l2c.io.names import listed
from l2c.io.numbers import finite_number

FIELDS = ("timesteps", "ends", "coefficients", "direct")
MOST_MOVED = 1e9  # by an output of 1
SMALL = 1e-4  # outputs of this size reach no clip of a scheduler, so that its steps are linear


@dataclass(frozen=True)
class Grid:
    """The evaluations of a solver: their times, and how far an output moves the state.

    Attributes:
        timesteps: t of each evaluation, (E,), strictly monotone.
        ends: t where the solver step of each evaluation ends, (E,). The last step is taken to be as long as the one
            before, but to end at t = 0 where times fall.
        coefficients: see `step_coefficients`, (E,).
        direct: whether an output enters the next state itself, (E,); the first evaluation of a two-stage step only
            moves the state at which the second takes place.

    Raises:
        ValueError: if the lists differ in length, hold no finite numbers, or times run in no direction.

    """

    timesteps: tuple[float, ...]
    ends: tuple[float, ...]
    coefficients: tuple[float, ...]
    direct: tuple[bool, ...]

    def __post_init__(self) -> None:
        count = len(self.timesteps)
        if not 2 <= count <= MAX_EVALUATIONS:
            raise ValueError(
                f"a calibration makes graphs for 2 to {MAX_EVALUATIONS} evaluations, got {count}; take as many steps"
            )
        for name in FIELDS:
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"a grid of {count} timesteps must have as many {name}, got {len(getattr(self, name))}"
                )
        for name in ("timesteps", "ends", "coefficients"):
            values = tuple(finite_number(f"{name} of a grid", value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
        if not all(1 / MOST_MOVED <= abs(value) <= MOST_MOVED for value in self.coefficients):
            raise ValueError(
                f"the coefficients of a grid must be of sizes in [{1 / MOST_MOVED:g}, {MOST_MOVED:g}], got "
                f"{listed(self.coefficients)}; run l2c calibrate again, with another solver or number of steps"
            )
        rising = self.timesteps[-1] > self.timesteps[0]
        if wrong := out_of_order(self.timesteps, rising=rising):
            raise ValueError(
                f"the timesteps of a grid must rise or fall all the way, got {wrong[1]:g} after {wrong[0]:g}; give "
                "them in the order of the evaluations, the noisiest first"
            )
        sign = 1 if rising else -1
        ends = [sign * end for end in self.ends]
        if ends != sorted(ends) or any(end < sign * t for end, t in zip(ends, self.timesteps, strict=True)):
            raise ValueError(
                f"the ends of a grid must be in the order of its timesteps and none before its own, got "
                f"{listed(self.ends)} for {listed(self.timesteps)}; run l2c calibrate again"
            )

    @classmethod
    def of(cls, solver: Solver) -> Grid:
        """Return the grid of a solver.

        Raises:
            ValueError: if the solver adds noise of its own, or an output moves no state.

        """
        solver.check_deterministic("a calibration carries along trajectories without noise")
        times, steps = tuple(map(float, solver.timesteps)), solver.steps
        step_of = {e: k for k, step in enumerate(steps) for e in step}
        starts = [times[step[0]] for step in steps]
        end = 2 * starts[-1] - starts[-2] if len(starts) > 1 else times[-1]
        starts.append(max(end, min(0.0, times[-1])) if times[-1] < times[0] else end)
        return cls(
            times,
            tuple(starts[step_of[e] + 1] for e in range(len(times))),
            step_coefficients(solver),
            tuple(e == steps[step_of[e]][-1] for e in range(len(times))),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON has them."""
        return {name: list(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> Grid:
        """Return the grid that `to_json` wrote.

        Args:
            content: the object.
            where: its name in messages.

        Raises:
            ValueError: if a field is missing, unknown or wrong.

        """
        known_fields(content, FIELDS, where)
        number = (int, float)
        times, ends, coefficients = (tuple(items(content, name, number, f"{where}.{name}")) for name in FIELDS[:3])
        return cls(times, ends, coefficients, tuple(items(content, "direct", bool, f"{where}.direct")))


def step_coefficients(solver: Solver) -> tuple[float, ...]:
    """Return for each evaluation how far an output of 1 moves the state, as seen right after its solver step.

    The network's outputs enter every step linearly. An output of 1 at one evaluation and 0 at all others therefore
    leads to a final state that is the product of the coefficient and of the linear part of all later steps, by which
    it is divided. For a multistep solver the coefficient holds what the output adds in later steps too.

    Raises:
        ValueError: if a coefficient is 0 or not finite.

    """
    final = output_map(solver)[-1]
    later = _later(solver)
    coefficients = tuple(float(moved) / after for moved, after in zip(final, later, strict=True))
    wrong = [e for e, value in enumerate(coefficients) if value == 0 or not math.isfinite(value)]
    if wrong:
        raise ValueError(
            f"{solver.name} moves no state by its output at evaluation {wrong[0]} (coefficient "
            f"{coefficients[wrong[0]]:g}), so that nothing can be carried there; take another solver or number of "
            "steps"
        )
    return coefficients


def output_map(solver: Solver) -> torch.Tensor:
    """Return how far an output of 1 at each evaluation moves the state of each evaluation, and the image, (E + 1, E).

    Entry [k, e] is for the output of evaluation e and the state that the network is given at evaluation k; the last
    row is for the image. In 64 bits.
    """
    count = solver.num_evaluations
    one = SMALL * torch.eye(count, dtype=torch.float64).view(count, count, 1, 1, 1)  # [evaluation, image]
    states: list[torch.Tensor] = []

    def output(x: torch.Tensor, t: float) -> torch.Tensor:
        states.append(x.double().flatten())
        return one[len(states) - 1]

    final = solver.sample(output, torch.zeros(count, 1, 1, 1, dtype=torch.float64))
    return torch.stack([*states, final.double().flatten()]) / SMALL


def _later(solver: Solver) -> list[float]:
    """Return for each evaluation what a state after its step is multiplied by until the end, outputs being 0."""
    one = SMALL * torch.ones(1, 1, 1, 1, dtype=torch.float64)
    states: list[float] = []

    def nothing(x: torch.Tensor, t: float) -> torch.Tensor:
        states.append(float(x))
        return 0 * one

    final = float(solver.sample(nothing, one))
    starts = [states[step[0]] for step in solver.steps] + [final]
    return [final / starts[solver.step_of(e) + 1] for e in range(solver.num_evaluations)]


def places(times: Sequence[float], like: Grid) -> list[float]:
    """Normalise times to 1 at the first evaluation of a grid and 0 at its last."""
    first, last = like.timesteps[0], like.timesteps[-1]
    return [(t - last) / (first - last) for t in times]


def finer(grid: Grid, measured: Grid) -> float:
    """Return how many evaluations a grid has for each of another one in the same stretch of time, on average.

    40 evaluations are twice as fine as 20; so are the last 20 of 40, which image-to-image makes.
    """
    falling = measured.timesteps[-1] < measured.timesteps[0]
    known = [-t if falling else t for t in measured.timesteps]
    ends = (-t if falling else t for t in (grid.timesteps[0], grid.timesteps[-1]))
    first, last = np.interp(list(ends), known, np.arange(len(known))).tolist()
    return len(grid.timesteps) / (last - first + 1)


def oldest_age(num_evaluations: int) -> int:
    """Return the age that responses reach by default, in evaluations: 0.4 of the trajectory, at least 6."""
    return min(num_evaluations - 1, max(6, -(-2 * num_evaluations // 5)))
