"""What a graph is made for from a calibration: the sampler measured, or another one of the same noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from l2c.calibration.grid import Grid
from l2c.calibration.measurements import Measurements
from l2c.calibration.other_times import check_reach_in_time
from l2c.diffusion import SOLVERS, Solver, make_solver
from l2c.graph.binding import Binding
from l2c.graph.checks import MAX_EVALUATIONS
from l2c.graph.given import floats, table
from l2c.io.names import shown
from l2c.io.numbers import finite_number, whole_number

EULER = ("flow_euler", "FlowMatchEulerDiscreteScheduler")


@dataclass(frozen=True)
class Target:
    """What a graph is made for: binding, evaluations as responses see them, and those of each solver step."""

    binding: Binding
    grid: Grid | None
    steps: Sequence[Sequence[int]]

    @property
    def key(self) -> tuple[object, ...]:
        """Key that identifies this target in the memo."""
        options = tuple(sorted(self.binding.solver_options.items()))
        return self.binding.solver, options, self.binding.timesteps, self.grid


def target_of(
    measured: Measurements,
    num_steps: int | None = None,
    timesteps: Sequence[float] | None = None,
    solver: Solver | str | None = None,
    options: Mapping[str, float] | None = None,
) -> Target:
    """Return what a graph is made for; arguments that are left out are those measured.

    Args:
        measured: the calibration.
        num_steps: evaluations of the network.
        timesteps: t of each evaluation instead, for Euler's method of a flow.
        solver: name of a solver of the same noise schedule, or the solver itself.
        options: the solver's own settings.

    Raises:
        ValueError: if two of them say the number of evaluations, or the calibration does not know such a solver.

    """
    num_steps = None if num_steps is None else whole_number("num_steps", num_steps, low=2, high=MAX_EVALUATIONS)
    given = [value for value in (num_steps, timesteps) if value is not None]
    if len(given) == 2 or (given and isinstance(solver, Solver)):
        raise ValueError("give num_steps, timesteps or a solver that has them; not two of these")
    binding = measured.binding
    if timesteps is not None:
        name = binding.solver if solver is None else shown(solver)
        grid = _euler_grid(measured, name, timesteps)
        binding = replace(binding, solver=name, timesteps=grid.timesteps, solver_options={})
        return Target(binding, grid, [(e,) for e in range(len(grid.timesteps))])
    if num_steps is None and solver is None and options is None:
        return Target(binding, measured.grid, [(e,) for e in range(binding.num_evaluations)])
    found = solver if isinstance(solver, Solver) else _solver(measured, num_steps, solver, options)
    binding = replace(binding, solver=found.name, timesteps=found.timesteps, solver_options=dict(found.options))
    return Target(binding, Grid.of(found), found.steps)


def _solver(
    measured: Measurements, num_steps: int | None, name: str | None, options: Mapping[str, float] | None
) -> Solver:
    binding = measured.binding
    name = binding.solver if name is None else name
    if measured.schedule is None or not isinstance(name, str) or name not in SOLVERS:
        raise ValueError(
            f"the calibration does not hold the noise schedule of {shown(name)}; pass the scheduler's steps as "
            "solver=, or timesteps= where it takes Euler steps of a flow"
        )
    if options is None:
        options = binding.solver_options if name == binding.solver else {}
    given = {str(key): finite_number(str(key), value) for key, value in table("solver_options", options).items()}
    return make_solver(name, measured.schedule, num_steps or binding.num_evaluations, **given)


def _euler_grid(measured: Measurements, name: str, timesteps: Sequence[float]) -> Grid:
    """Return the grid of Euler steps of a flow, whose state moves by the output times the difference of times."""
    if name not in EULER or measured.binding.solver not in EULER or measured.grid is None:
        raise ValueError(
            f"timesteps alone do not say what the steps of {name} are; they do for {' and '.join(EULER)}: pass "
            "num_steps, or the solver itself"
        )
    times, own = floats("timesteps", timesteps), measured.grid
    if len(times) < 2:
        raise ValueError(f"timesteps must be at least 2, got {len(times)}; give one per evaluation, noisiest first")
    unit = own.coefficients[0] / (own.ends[0] - own.timesteps[0])  # models count to 1000, or to 1, or up
    ends = (*times[1:], 0.0 if own.timesteps[-1] < own.timesteps[0] else 1 / abs(unit))
    moved = tuple(unit * (end - t) for t, end in zip(times, ends, strict=True))
    if (times[-1] < times[0]) != (own.timesteps[-1] < own.timesteps[0]):
        raise ValueError(
            f"timesteps go from {times[0]:g} to {times[-1]:g}, but those of the calibration from "
            f"{own.timesteps[0]:g} to {own.timesteps[-1]:g}; give the noisiest first"
        )
    grid = Grid(times, ends, moved, (True,) * len(times))
    check_reach_in_time(own, grid)
    return grid
