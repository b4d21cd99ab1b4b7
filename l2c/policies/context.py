"""The input of every policy: an all-compute graph to thin out, costs, calibration."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from l2c.backbones.whole_output import check_one_kind
from l2c.calibration.cost import Cost, count_macs
from l2c.calibration.measurements import Measurements
from l2c.diffusion.routed import routed_evaluations
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.fields import Entry
from l2c.graph.given import takes
from l2c.graph.predictor import Weights
from l2c.graph.statistics import made_by
from l2c.io.names import near_keywords, quoted
from l2c.io.numbers import scalar, truth_value
from l2c.policies.budget import Budget, check_reach, evaluations_worth, rows_in_order
from l2c.policies.settings import check_values
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler

Function = TypeVar("Function", bound=Callable[..., CacheGraph])
FAR = 0.5  # evaluations' worth of MACs that a budget may be missed by without a word


@dataclass(frozen=True)
class PolicyContext:
    """Make a graph for this backbone and sampler.

    Attributes:
        blank: a graph that computes everything; says what the result is valid for.
        cost: MACs of the backbone.
        alternate: the evaluations that Learning-to-Cache routes, every second one.
        calibration: what was measured, for the policies that need them.
        sampler: the uncached sampler, for the policies that try graphs out.
        measured: all that was measured, of other kinds of layers and at the times of the calibration.

    """

    blank: CacheGraph
    cost: Cost
    alternate: tuple[int, ...]
    calibration: Measurements | None = None
    sampler: Sampler | None = None
    measured: Measurements | None = None

    @classmethod
    @takes(sampler=Sampler, calibration=Measurements, weights_bound=truth_value)
    def of(
        cls, sampler: Sampler, calibration: Measurements | None = None, *, weights_bound: bool = True
    ) -> PolicyContext:
        """Return the context of an uncached sampler.

        A sampler of a backbone on the meta device (`backbone_shapes`) will do for policies that measure nothing.

        Args:
            sampler: the uncached sampler.
            calibration: what was measured, carried to the sampler's times where they were measured at others; for
                a backbone whose layer is its whole output, what was measured of that.
            weights_bound: bind graphs to the weights; false skips their digest, for graphs that are not saved.

        Raises:
            ValueError: if the calibration belongs to another model or sampler, or the backbone has layers and its
                whole output.

        """
        backbone, solver = sampler.backbone, sampler.solver
        check_one_kind(backbone)
        has_weights = weights_bound and not next(backbone.parameters()).is_meta
        blank = CacheGraph.blank(binding_of(backbone, solver, weights_bound=has_weights, guidance=sampler.guidance))
        own = None if calibration is None else calibration.part(blank.layers).at(blank, solver)
        return cls(blank, count_macs(backbone), routed_evaluations(solver.steps), own, sampler, calibration)

    def for_any_weights(self) -> PolicyContext:
        """Return the same context for graphs that do not depend on the weights."""
        return replace(self, blank=self.blank.replace(fingerprint=None))

    @property
    def stochastic(self) -> bool:
        """Whether the solver adds noise of its own, so that no forecast may extrapolate."""
        return self.sampler is not None and self.sampler.solver.stochastic

    def deterministic_sampler(self, policy: str) -> Sampler:
        """Return the sampler, for a policy that compares images from the same noise.

        Raises:
            ValueError: if the solver adds noise of its own.

        """
        assert self.sampler is not None
        self.sampler.solver.check_deterministic(f"policy {policy} compares images from the same noise")
        return self.sampler

    @property
    def all_but_first(self) -> tuple[int, ...]:
        """Every evaluation that can be routed at all."""
        return tuple(range(1, self.blank.num_evaluations))

    def required_calibration(self) -> Measurements:
        """Return the calibration.

        Raises:
            ValueError: if there is no calibration.

        """
        if self.calibration is None:
            raise ValueError("there is no calibration; run l2c calibrate and pass calibration=PATH")
        return self.calibration

    def least(self, routed: Sequence[int]) -> float:
        """Return the evaluations' worth of MACs that is left when routed evaluations reuse everything."""
        return self.blank.num_evaluations - len(routed) * self.cost.removable

    def evaluations(self, budget: Budget) -> float:
        """Return a budget in evaluations' worth of MACs, see `policies.budget`.

        Raises:
            ValueError: if the budget has none of the known forms, or no graph can reach it.

        """
        worth = evaluations_worth(budget, self.blank.num_evaluations)
        self.check_reach(worth, self.least(self.all_but_first))
        return worth

    def check_reach(self, worth: float, least: float) -> None:
        """Refuse a budget below `least` or above the uncached MACs."""
        check_reach(worth, least, self.blank.num_evaluations)

    def routed(self, routed: str, worth: float | None) -> tuple[int, ...]:
        """Return routed evaluations: `alternate`, `all` but the first, or `auto`: alternate where that reaches."""
        if routed not in ("auto", "alternate", "all"):
            raise ValueError(f"routed must be auto, alternate or all, got {routed!r}")
        enough = worth is None or worth >= self.least(self.alternate) - 1e-6
        return self.alternate if routed == "alternate" or (routed == "auto" and enough) else self.all_but_first

    def graph(
        self,
        rows: Iterable[Sequence[bool]],
        method: str,
        *,
        reuse: Sequence[str] = (),
        slopes: tuple[tuple[float, ...], ...] = (),
        weights: tuple[tuple[Weights, ...], ...] = (),
        **hyperparameters: Any,
    ) -> CacheGraph:
        """Return the graph of some rows, with where it came from and its MACs."""
        graph = self.blank.replace(
            rows=tuple(map(tuple, rows)),
            routed=None,
            reuse=tuple(reuse),
            slopes=slopes,
            weights=weights,
            provenance=made_by(method, hyperparameters),
        )
        return graph.replace(measured=self.cost.measured(graph))

    def in_order(self, entries: Sequence[Entry], worth: float) -> list[list[bool]]:
        """Return rows that reuse entries in their order until the MACs have come down to `worth`."""
        num_evaluations, macs = self.blank.num_evaluations, self.cost.layers
        reusable = sum(macs[layer] for _, layer in entries) / self.cost.evaluation
        self.check_reach(worth, num_evaluations - reusable)
        return rows_in_order(entries, macs, num_evaluations, self.cost.to_save(worth, num_evaluations))

    def meet(self, worth: float, make: Callable[[float], CacheGraph], high: float) -> CacheGraph:
        """Return the graph whose MACs are nearest to `worth`, over thresholds in [0, high]; more of it reuses more.

        Raises:
            ValueError: if even `high` does not reach the budget.

        """
        low, most, least = 0.0, make(0.0), make(high)
        self.check_reach(worth, self.cost.evaluations_worth(least))
        for _ in range(50):
            middle = (low + high) / 2
            graph = make(middle)
            if self.cost.evaluations_worth(graph) > worth:
                low, most = middle, graph
            else:
                high, least = middle, graph
        found = min((least, most), key=lambda graph: abs(self.cost.evaluations_worth(graph) - worth))
        got = self.cost.evaluations_worth(found)
        if abs(got - worth) > FAR:
            budgets = " and ".join(f"{self.cost.evaluations_worth(graph):.2f}" for graph in (least, most))
            warnings.warn(
                f"no threshold meets {worth:g} evaluations' worth of MACs: the nearest budgets are {budgets}",
                stacklevel=2,
            )
        return found


def check_context(context: Any) -> PolicyContext:
    """Return what policies make graphs for.

    Raises:
        ValueError: if it is no context.

    """
    if not isinstance(context, PolicyContext):
        raise ValueError(
            f"a policy makes graphs for a PolicyContext, got {quoted(context)}; PolicyContext.of has one"
        )
    return context


def policy(function: Function) -> Function:
    """Let a policy check its context and its options, as `make_graph` and the commands check them."""

    @functools.wraps(function)
    def call(context: Any, **options: Any) -> CacheGraph:
        own = {name: scalar(value) for name, value in options.items()}
        rest = {name: value for name, value in own.items() if name != "budget"}  # which has sentences of its own
        check_values(function.__name__, rest, prefix="")
        return function(check_context(context), **own)

    return near_keywords()(call)  # type: ignore[return-value]
