"""Graphs of any budget, number of evaluations and schedule from one calibration, without the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from l2c.calibration import measuring
from l2c.calibration.joining import joined
from l2c.calibration.measurements import Measurements
from l2c.calibration.settings import RESPONSES
from l2c.calibration.target import Target, target_of
from l2c.diffusion import Solver
from l2c.diffusion.routed import routed_evaluations
from l2c.graph.binding import Binding
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import each, takes
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output
from l2c.io.names import near_keywords
from l2c.io.numbers import AT_ONCE, truth_value, whole_number
from l2c.policies.budget import Budget, BudgetOutOfReach, evaluations_worth
from l2c.policies.context import PolicyContext
from l2c.policies.corrections import CARRIED_AT, CORRECTED_AT, Reachable, Stage, errors_of_stage, stages_of
from l2c.policies.expected_error import without_unknown
from l2c.policies.gram import gram
from l2c.policies.ladder import Ladder, least_expected, of_kinds, preferred, within_reach
from l2c.policies.mixed import as_both, of_both, same_directions
from l2c.policies.true_error import Judge
from l2c.sampling.sampler import Sampler

SPAN = 0.3  # of the trajectory: evaluations in a row that a layer may be reused
LEAST_SPAN = 4
REMEMBERED = 256  # graphs, those of layers and whole output of one budget being one


@dataclass(frozen=True, repr=False)
class Calibration(Measurements):
    """A calibration that makes graphs.

    calibration = l2c.Calibration.load("mine.safetensors")
    graph = calibration.graph(0.4, num_steps=30)

    """

    _made: dict[Any, list[CacheGraph]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _contexts: dict[Any, PolicyContext] = field(default_factory=dict, init=False, repr=False, compare=False)
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def measure(cls, sampler: Sampler, *, true_errors: int = 64, **settings: Any) -> Calibration:
        """Measure an uncached sampler, see `l2c.calibration.measuring.measure` for settings and errors.

        Args:
            sampler: the uncached sampler.
            true_errors: trajectories that correct the expected errors of graphs, see `corrected`; 0 = they are not
                known.
            settings: `what`, `num_trajectories`, `seed`, `first_trajectory`, `batch_size`, `changes`, `responses`.

        """
        true_errors = whole_number("true_errors", true_errors, low=0, high=AT_ONCE)
        calibration = measuring.measure(cls, sampler, **settings)
        if not true_errors or RESPONSES not in calibration.tensors:
            return calibration
        size = calibration.settings["batch_size"]
        return calibration.corrected(sampler, num_trajectories=true_errors, batch_size=size)

    @classmethod
    def joined(cls, parts: Iterable[Calibration | str | Path]) -> Calibration:
        """Return one calibration of parts that several processes measured, or of their files; see `joining.joined`.

        Measure them with a `first_trajectory` each and `true_errors=0`, and the joined one by `corrected`.
        """
        return joined(cls, parts)

    @takes(whole_outputs=truth_value)
    def graph(
        self,
        budget: Budget,
        *,
        num_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        solver: Solver | str | None = None,
        solver_options: Mapping[str, float] | None = None,
        max_span: int | None = None,
        whole_outputs: bool = True,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
    ) -> CacheGraph:
        """Return a graph of a budget, for the sampler measured or for other times; the model is not needed.

        Where responses to the whole output were measured too, a graph of it as the one layer is made as well, and one
        of both, see `policies.mixed`. The one of the least expected error is returned, or the one of the whole output
        where that ties (1.5 x) at no more MACs: on the clock it is at the bound of its MACs.
        `part(["output"]).graph(...)` makes no other.

        Args:
            budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
            num_steps: evaluations of the network; None = as many as were measured.
            timesteps: t of each evaluation instead, for Euler's method of a flow.
            solver: name of a solver of the same noise schedule, or the solver itself; None = that measured.
            solver_options: the solver's own settings, `shift` for one; None = those measured.
            max_span: evaluations in a row that a layer may be reused; None = 0.3 of the trajectory.
            whole_outputs: False = graphs of the layers alone.
            sampler: the uncached sampler of the graph, in the place of steps and solver: the kind, and of both
                kinds the graph, is taken by true errors on a few noises, see `true_error.Judge`.
            batch_size: noises drawn at a time with `sampler`; None = as many as trajectories when it was measured.

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
            whole_outputs=whole_outputs,
            sampler=sampler,
            batch_size=batch_size,
        )
        return graph

    @takes(whole_outputs=truth_value)
    def ladder(
        self,
        budgets: Sequence[Budget],
        *,
        num_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        solver: Solver | str | None = None,
        solver_options: Mapping[str, float] | None = None,
        max_span: int | None = None,
        whole_outputs: bool = True,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
    ) -> Ladder:
        """Return the graphs of several budgets, each as `graph` makes it."""
        max_span = None if max_span is None else whole_number("max_span", max_span, low=1)
        size = None if batch_size is None else whole_number("batch_size", batch_size, low=1, high=AT_ONCE)
        given = num_steps, timesteps, solver, solver_options
        if sampler is not None and any(value is not None for value in given):
            raise ValueError(
                "sampler= says steps and solver; leave num_steps, timesteps, solver and solver_options out"
            )
        if sampler is None and size is not None:
            raise ValueError("batch_size= is of what sampler= draws; give the sampler too, or leave batch_size out")
        judge = None if sampler is None else Judge.of(self, sampler, size)
        target = target_of(self, *given) if judge is None else judge.target
        found = self._graphs(target, each("budgets", budgets), max_span, whole_outputs=whole_outputs, judge=judge)
        return Ladder(map(self._as_known, found))

    @near_keywords()
    def reachable(self, budgets: Sequence[Budget], *, num_steps: int | None = None) -> Ladder:
        """Return the graphs of those of some budgets that can be reached, from the largest.

        Raises:
            BudgetOutOfReach: if none can be reached.

        """
        return Ladder(map(self._as_known, self._reachable(target_of(self, num_steps), each("budgets", budgets))))

    def _as_known(self, graph: CacheGraph) -> CacheGraph:
        """Return a graph without an expected error that says nothing; one warning says why."""
        return without_unknown(graph, self._warned)

    def _reachable(self, target: Target, budgets: Iterable[Budget]) -> list[CacheGraph]:
        return within_reach(lambda budget: next(self._graphs(target, [budget])), budgets)

    def _both_reachable(self, target: Target, budgets: Iterable[Budget]) -> list[CacheGraph]:
        return within_reach(lambda budget: self._of_both(target, budget, None), budgets)

    def preferred(self, budget: Budget) -> Calibration | OfBoth:
        """Return what makes graphs of the one kind of layers that `graph` prefers, and no others.

        Args:
            budget: what a graph of the measured sampler may cost; one out of its reach leaves that of the layers.

        """
        with contextlib.suppress(BudgetOutOfReach):
            layers = self.graph(budget).layers
            return OfBoth(self) if ends_in_output(layers) else self.part(layers)
        return self.parts[0]

    def _graphs(
        self,
        target: Target,
        budgets: Iterable[Budget],
        max_span: int | None = None,
        *,
        whole_outputs: bool = True,
        judge: Judge | None = None,
    ) -> Iterator[CacheGraph]:
        """Yield the graph of each budget."""
        layers, *whole = self.parts
        kinds = [*(part._alone for part in whole), layers._alone, *([self._all_of_both] if _of_two(self) else [])]
        for budget in budgets:
            makes = kinds if whole_outputs else [layers._alone]
            found = of_kinds(partial(make, target, budget, max_span) for make in makes)
            yield preferred(found) if judge is None else judge.best(found)

    def _of_both(self, target: Target, budget: Budget, max_span: int | None) -> CacheGraph:
        """Return the graph of layers and whole output of the least expected error."""
        return least_expected(self._all_of_both(target, budget, max_span))

    def _all_of_both(self, target: Target, budget: Budget, max_span: int | None) -> list[CacheGraph]:
        """Return the graphs of layers and whole output; see `_alone`."""

        def make() -> list[CacheGraph]:
            context, of_output = (part._context_of(target) for part in self.parts)
            layers, whole = context.required_calibration(), of_output.required_calibration()
            if self.both_corrections:  # in the place of those of either kind
                layers, whole = replace(layers, corrections=self.both_corrections), replace(whole, corrections=())
                context = replace(context, calibration=layers)
            worth = evaluations_worth(budget, context.blank.num_evaluations)
            return of_both(context, whole, worth, max_span=max_span or _span(context))

        return self._remembered((target.key, str(budget), max_span, "both"), make)

    def _alone(self, target: Target, budget: Budget, max_span: int | None) -> list[CacheGraph]:
        """Return the graph of a budget, of one kind of layers; those of the last `REMEMBERED` are made once."""

        def make() -> list[CacheGraph]:
            context = self._context_of(target)
            return [gram(context, budget=budget, max_span=max_span or _span(context))]

        return self._remembered((target.key, str(budget), max_span), make)

    def _remembered(self, key: Any, make: Callable[[], list[CacheGraph]]) -> list[CacheGraph]:
        """Return the graphs of a key; they are made once."""
        if key not in self._made:
            self._made[key] = make()
            for old in list(self._made)[:-REMEMBERED]:
                self._made.pop(old, None)
        return self._made[key]

    def _context_of(self, target: Target) -> PolicyContext:
        """Return the context of a target; the last one is remembered."""
        context = self._contexts.get(target.key)
        if context is None:
            self._contexts.clear()
            context = self._contexts[target.key] = self._context(target)
        return context

    def _context(self, target: Target) -> PolicyContext:
        if self.cost is None:
            raise ValueError("the calibration does not hold the MACs of its layers; run l2c calibrate again")
        blank = CacheGraph.blank(replace(target.binding, layers=self.binding.layers))
        calibration = self if target.grid is None else self.at(blank, target.grid)
        return PolicyContext(blank, self.cost, routed_evaluations(target.steps), calibration)

    @near_keywords()
    def corrected(self, sampler: Sampler, *, num_trajectories: int = 64, batch_size: int = 64) -> Calibration:
        """Return the calibration with true errors beside those that its responses predict, at several budgets.

        First order underestimates errors, the more so the less is computed and the more evaluations there are. Where
        responses can be carried, half and twice the evaluations are tried too, on half as many trajectories.
        Trajectories differ from those measured.

        Args:
            sampler: the measured uncached sampler.
            num_trajectories: noises per budget.
            batch_size: trajectories at a time.

        Raises:
            ValueError: if a number is no whole number of at least 1.

        """
        measuring.check_sampler(sampler)
        num_trajectories = whole_number("num_trajectories", num_trajectories, low=1, high=AT_ONCE)
        batch_size = whole_number("batch_size", batch_size, low=1, high=AT_ONCE)
        alone = replace(self, corrections=(), output_corrections=(), both_corrections=())
        kinds: list[tuple[Reachable, Sequence[float]]] = [
            (part._reachable, shares) for part, shares in zip(alone.parts, (CORRECTED_AT, CARRIED_AT), strict=False)
        ]
        if _of_two(alone):
            kinds.append((alone._both_reachable, CARRIED_AT))
        plan = [
            (i, stage)
            for i, (_, shares) in enumerate(kinds)
            for stage in stages_of(alone.parts[0], shares, num_trajectories)
        ]
        found: list[tuple[dict[str, float], ...]] = [(), (), ()]
        targets: dict[Stage, Tensor] = {}
        with tqdm(total=sum(stage.images for _, stage in plan), desc="true errors", unit="image") as bar:
            for i, stage in plan:
                before = bar.n
                found[i] += tuple(errors_of_stage(self, kinds[i][0], sampler, stage, targets, batch_size, bar))
                bar.total -= stage.images - (bar.n - before)  # budgets out of reach, and images that were there
        layers, output, both = found
        return replace(self, corrections=layers, output_corrections=output, both_corrections=both)


@dataclass(frozen=True)
class OfBoth:
    """A calibration that makes graphs of layers and whole output alone; see `policies.mixed`.

    Attributes:
        calibration: has responses to both.

    """

    calibration: Calibration

    @property
    def binding(self) -> Binding:
        """The binding of its graphs at the measured times."""
        binding = self.calibration.binding
        return replace(binding, layers=(*binding.layers, WHOLE_OUTPUT))

    def graph(self, budget: Budget, *, solver: Solver | str | None = None) -> CacheGraph:
        """Return a graph of a budget, of one kind alone where both do not reach it; see `Calibration.graph`."""
        target = target_of(self.calibration, solver=solver)
        try:
            return self.calibration._as_known(self.calibration._of_both(target, budget, None))
        except BudgetOutOfReach:
            layers, whole = self.calibration.parts
            found = preferred(of_kinds(partial(part._alone, target, budget, None) for part in (whole, layers)))
            return as_both(self.calibration._as_known(found), layers.binding.layers)


def _of_two(calibration: Calibration) -> bool:
    """Return whether a calibration makes graphs of layers and whole output."""
    layers, *whole = calibration.parts
    return bool(whole) and same_directions(layers, whole[0])


def _span(context: PolicyContext) -> int:
    return max(LEAST_SPAN, round(SPAN * context.blank.num_evaluations))
