"""Graphs of any budget, number of evaluations and schedule from one calibration, without the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from l2c.calibration import calibration as measured
from l2c.calibration import measuring
from l2c.calibration.grid import Grid
from l2c.diffusion import SOLVERS, Solver, make_solver
from l2c.diffusion.routed import routed_evaluations
from l2c.graph.cache_graph import CacheGraph
from l2c.policies.budget import Budget, BudgetOutOfReach
from l2c.policies.context import PolicyContext
from l2c.policies.gram import gram
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import uncached_like

SPAN = 0.3  # of the trajectory: evaluations in a row that a layer may be reused
LEAST_SPAN = 4
CORRECTED_AT = (0.75, 0.64, 0.5, 0.4, 0.32, 0.25)
EULER = ("flow_euler", "FlowMatchEulerDiscreteScheduler")


@dataclass(frozen=True)
class Calibration(measured.Calibration):
    """A calibration that makes graphs.

    calibration = l2c.Calibration.load("mine.safetensors")
    graph = calibration.graph(0.4, num_steps=30)

    """

    @classmethod
    def measure(cls, sampler: Sampler, *, true_errors: int = 64, **settings: Any) -> Calibration:
        """Measure an uncached sampler, see `l2c.calibration.measuring.measure` for settings and errors.

        Args:
            sampler: the uncached sampler.
            true_errors: trajectories that correct the expected errors of graphs, see `corrected`; 0 = first order.
            settings: `what`, `num_trajectories`, `seed`, `batch_size`, `changes`, `responses`.

        """
        calibration = measuring.measure(cls, sampler, **settings)
        if not true_errors or measuring.RESPONSES not in calibration.tensors:
            return calibration
        size = calibration.settings["batch_size"]
        return calibration.corrected(sampler, num_trajectories=true_errors, batch_size=size)

    def graph(
        self,
        budget: Budget,
        *,
        num_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        solver: Solver | str | None = None,
        solver_options: Mapping[str, float] | None = None,
        max_span: int | None = None,
    ) -> CacheGraph:
        """Return a graph of a budget, for the sampler measured or for other times; the model is not needed.

        Args:
            budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
            num_steps: evaluations of the network; None = as many as were measured.
            timesteps: t of each evaluation instead, for Euler's method of a flow.
            solver: name of a solver of the same noise schedule, or the solver itself; None = that measured.
            solver_options: the solver's own settings, `shift` for one; None = those measured.
            max_span: evaluations in a row that a layer may be reused; None = 0.3 of the trajectory.

        Raises:
            ValueError: if the budget is out of reach, nothing was measured there, or an argument is out of range.

        """
        (graph,) = self.ladder(
            [budget],
            num_steps=num_steps,
            timesteps=timesteps,
            solver=solver,
            solver_options=solver_options,
            max_span=max_span,
        )
        return graph

    def ladder(
        self,
        budgets: Sequence[Budget],
        *,
        num_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        solver: Solver | str | None = None,
        solver_options: Mapping[str, float] | None = None,
        max_span: int | None = None,
    ) -> list[CacheGraph]:
        """Return the graphs of several budgets, as `graph` makes them; `measured` holds their expected errors."""
        context = self._context(num_steps, timesteps, solver, solver_options)
        return [gram(context, budget=budget, max_span=max_span or _span(context)) for budget in budgets]

    def reachable(self, budgets: Sequence[Budget], *, num_steps: int | None = None) -> list[CacheGraph]:
        """Return the graphs of those of some budgets that can be reached, from the largest.

        Raises:
            BudgetOutOfReach: if none can be reached.

        """
        context = self._context(num_steps, None, None, None)
        found: list[CacheGraph] = []
        refusal: BudgetOutOfReach | None = None
        for budget in budgets:
            try:
                found.append(gram(context, budget=budget, max_span=_span(context)))
            except BudgetOutOfReach as error:
                refusal = error
                break
        if not found and refusal is not None:
            raise refusal
        return found

    def _context(
        self,
        num_steps: int | None,
        timesteps: Sequence[float] | None,
        solver: Solver | str | None,
        options: Mapping[str, float] | None,
    ) -> PolicyContext:
        if self.cost is None:
            raise ValueError("the calibration does not hold the MACs of its layers; run l2c calibrate again")
        given = [value for value in (num_steps, timesteps) if value is not None]
        if len(given) == 2 or (given and isinstance(solver, Solver)):
            raise ValueError("give num_steps, timesteps or a solver that has them, not two of these")
        binding, grid = self.binding, self.grid
        steps: Sequence[Sequence[int]] = [(e,) for e in range(binding.num_evaluations)]
        if timesteps is not None:
            name = binding.solver if solver is None else str(solver)
            grid = _euler_grid(name, self.binding.solver, timesteps)
            steps = [(e,) for e in range(len(grid.timesteps))]
            binding = replace(binding, solver=name, timesteps=grid.timesteps, solver_options={})
        elif num_steps is not None or solver is not None or options is not None:
            found = solver if isinstance(solver, Solver) else self._solver(num_steps, solver, options)
            grid, steps = Grid.of(found), found.steps
            binding = replace(
                binding, solver=found.name, timesteps=found.timesteps, solver_options=dict(found.options)
            )
        blank = CacheGraph.blank(binding)
        calibration = self if grid is None else self.at(blank, grid)
        return PolicyContext(blank, self.cost, routed_evaluations(steps), calibration)

    def _solver(self, num_steps: int | None, name: str | None, options: Mapping[str, float] | None) -> Solver:
        binding = self.binding
        name = binding.solver if name is None else name
        if self.schedule is None or name not in SOLVERS:
            raise ValueError(
                f"the calibration does not hold the noise schedule of {name}; pass the scheduler's steps as solver=, "
                "or timesteps= where it takes Euler steps of a flow"
            )
        if options is None:
            options = binding.solver_options if name == binding.solver else {}
        return make_solver(name, self.schedule, num_steps or binding.num_evaluations, **options)

    def corrected(self, sampler: Sampler, *, num_trajectories: int = 64, batch_size: int = 64) -> Calibration:
        """Return the calibration with true errors beside those that its responses predict, at several budgets.

        First order underestimates errors, the more so the less is computed. Trajectories differ from those measured.

        Args:
            sampler: the measured uncached sampler.
            num_trajectories: noises per budget.
            batch_size: trajectories at a time.

        """
        backbone = sampler.backbone
        first, seed = int(self.settings.get("num_trajectories", 0)), int(self.settings.get("seed", 0))
        noise = seeded_noise(backbone.input_shape, seed, num_trajectories, first=first)
        labels = labels_in_turn(backbone.num_labels, num_trajectories, first=first)
        plain = replace(self, corrections=())
        streams = {"batch_size": batch_size, "seed": seed, "first_image": first}
        reference = sample_in_batches(uncached_like(sampler), labels, noise, **streams)
        found: list[dict[str, float]] = []
        for share, graph in zip(CORRECTED_AT, plain.reachable(CORRECTED_AT), strict=False):
            cached = Sampler(backbone, graph=graph, cfg_scale=sampler.guidance.scale)
            images = sample_in_batches(cached, labels, noise, **streams)
            true = float((images - reference).double().square().mean())
            predicted = float(graph.measured["expected_mse"])
            if 0 < true < math.inf and predicted > 0:
                found.append({"share": share, "predicted": predicted, "true": true})
        return replace(self, corrections=tuple(found))


def _span(context: PolicyContext) -> int:
    return max(LEAST_SPAN, round(SPAN * context.blank.num_evaluations))


def _euler_grid(name: str, measured_name: str, timesteps: Sequence[float]) -> Grid:
    """Return the grid of Euler steps of a flow, whose state moves by the output times the difference of times."""
    if name not in EULER or measured_name not in EULER:
        raise ValueError(
            f"timesteps alone do not say what the steps of {name} are; they do for {' and '.join(EULER)}: pass "
            "num_steps, or the solver itself"
        )
    times = tuple(map(float, timesteps))
    ends = (*times[1:], 0.0)
    moved = tuple((end - t) / 1000 for t, end in zip(times, ends, strict=True))
    return Grid(times, ends, moved, (True,) * len(times))
