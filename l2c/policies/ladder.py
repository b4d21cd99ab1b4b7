"""Graphs of several budgets for one sampler, from the most to the least expensive; a server picks one per request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from l2c.graph import collection
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import each
from l2c.graph.layer_names import WHOLE_OUTPUT, own_layers
from l2c.graph.statistics import ERROR, SPREAD, WORTH
from l2c.io.names import chosen, quoted, shown
from l2c.io.numbers import finite_number
from l2c.policies.budget import NEAR as NEAR_BUDGET
from l2c.policies.budget import Budget, BudgetOutOfReach, evaluations_worth

FORMAT = "l2c-cache-ladder"
MOST = 1000  # graphs
NEAR = 0.01  # of the MACs: budgets are met to within about a layer
TIE = 1.5  # expected errors that differ by less say nothing about which is smaller


class Ladder(Sequence[CacheGraph]):
    """Graphs of several budgets, for the same model, weights, solver, times and guidance; see `Calibration.ladder`.

    ladder = l2c.Ladder.load("ladder.json")
    graph = ladder.rung(0.5)

    Args:
        graphs: at least one, in any order, each with its cost and expected error among its measured figures.

    Raises:
        ValueError: if there is no graph, one lacks these figures, or they were made for different samplers.

    """

    def __init__(self, graphs: Iterable[CacheGraph]) -> None:
        found = list(each("the graphs of a ladder", graphs))
        if not found:
            raise ValueError(
                "a ladder needs one graph at least, got none; give graphs, or budgets to Calibration.ladder"
            )
        for graph in found:
            if not isinstance(graph, CacheGraph):
                raise ValueError(f"a ladder is made of cache graphs, got {quoted(graph)}; load them first")
            if not _alike(graph, found[0]):
                raise ValueError(
                    f"the graphs of a ladder must be for one model and sampler, got {found[0].num_evaluations} "
                    f"evaluations of {shown(found[0].model)} and {graph.num_evaluations} of {shown(graph.model)} at "
                    "other times, weights or guidance; make a ladder for each"
                )
            if not all(figure in graph.measured for figure in (WORTH, ERROR, SPREAD)):
                raise ValueError("a graph of a ladder does not say its cost and expected error; make it by gram")
        self._graphs = sorted(found, key=lambda graph: -graph.measured[WORTH])

    @overload
    def __getitem__(self, index: int) -> CacheGraph: ...
    @overload
    def __getitem__(self, index: slice) -> list[CacheGraph]: ...
    def __getitem__(self, index: int | slice) -> CacheGraph | list[CacheGraph]:
        return self._graphs[index]

    def __repr__(self) -> str:
        dearest, *_, cheapest = self.shares * 2
        return f"<Ladder of {len(self)}, {dearest:.2f} to {cheapest:.2f} of the MACs: {self._graphs[0]!r}, ...>"

    def __len__(self) -> int:
        return len(self._graphs)

    def figures(self, name: str) -> list[float]:
        """Return a figure of each graph: `WORTH` in evaluations, `ERROR` or `SPREAD` per pixel, NaN = unknown."""
        chosen("figure", name, (WORTH, ERROR, SPREAD))
        values = [graph.measured[name] for graph in self._graphs]
        return [math.nan if value is None else float(value) for value in values]

    @property
    def shares(self) -> list[float]:
        """What each graph costs, as a share of the uncached MACs."""
        return [worth / self._graphs[0].num_evaluations for worth in self.figures(WORTH)]

    def rung(self, budget: Budget) -> CacheGraph:
        """Return the most expensive graph that costs at most a budget, to within `NEAR`.

        Args:
            budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.

        Raises:
            BudgetOutOfReach: if every graph costs more.
            ValueError: if the budget has none of the three forms.

        """
        count, costs = self._graphs[0].num_evaluations, self.shares
        worth = evaluations_worth(budget, count)
        found = [graph for graph, cost in zip(self._graphs, costs, strict=True) if cost <= worth / count + NEAR]
        if not found:
            raise BudgetOutOfReach(
                f"no graph of the ladder costs {worth / count:.3g} of the MACs or less; "
                f"the cheapest costs {costs[-1]:.2f}"
            )
        return found[0]

    def within(self, error: float) -> CacheGraph:
        """Return the cheapest graph whose expected mean squared error per pixel is at most `error`.

        Raises:
            ValueError: if every graph errs more, or the error is no number of at least 0.

        """
        error = finite_number("an expected error", error, low=0)
        errors = self.figures(ERROR)
        found = [graph for graph, expected in zip(self._graphs, errors, strict=True) if expected <= error]
        if not found:
            known = [value for value in errors if not math.isnan(value)]
            least = f"the least is {min(known):g}" if known else "none of their errors is known"
            raise ValueError(f"no graph of the ladder is expected to err by {error:g} or less; {least}")
        return found[-1]

    def summary(self) -> str:
        """Return a line per graph: cost, speed-up, expected error x 1e-5."""
        count = self._graphs[0].num_evaluations
        rows = zip(*(self.figures(name) for name in (WORTH, ERROR, SPREAD)), strict=True)
        return "\n".join(
            f"{worth:8.2f} evaluations' worth {count / worth:6.2f} x  {_shown(error)} +- {_shown(spread, 2)}"
            for worth, error, spread in rows
        )

    def save(self, path: str | Path) -> None:
        """Write one JSON file; see `collection.write`."""
        graphs: dict[str, CacheGraph] = {}
        for share, graph in zip(self.shares, self._graphs, strict=True):
            alike = sum(name.startswith(f"{share:.4f}") for name in graphs)
            graphs[f"{share:.4f}" if not alike else f"{share:.4f} ({alike + 1})"] = graph
        collection.write(path, FORMAT, graphs)

    @classmethod
    def load(cls, path: str | Path) -> Ladder:
        """Read and validate a file; see `collection.read`."""
        return cls(collection.read(path, FORMAT, "ladder of cache graphs", most=MOST).values())


def _shown(error: float, digits: int = 3) -> str:
    return "unknown" if math.isnan(error) else f"{1e5 * error:.{digits}g}"


def _alike(graph: CacheGraph, other: CacheGraph) -> bool:
    """Return whether graphs are for one model and sampler; they may be of layers, of the whole output or of both."""
    layers = {own_layers(graph.layers), own_layers(other.layers)} - {()}
    return len(layers) <= 1 and replace(graph.binding, layers=other.layers) == other.binding


def within_reach(make: Callable[[Budget], CacheGraph], budgets: Iterable[Budget]) -> list[CacheGraph]:
    """Return the graphs of budgets from the largest, up to the first that is out of reach.

    Raises:
        BudgetOutOfReach: if that is the first one.

    """
    found: list[CacheGraph] = []
    try:
        for budget in budgets:
            found.append(make(budget))
    except BudgetOutOfReach:
        if not found:
            raise
    return found


def of_kinds(makes: Iterable[Callable[[], Sequence[CacheGraph]]]) -> list[CacheGraph]:
    """Return the graphs of those kinds that reach their budget.

    Raises:
        BudgetOutOfReach: if there is none; it is the refusal of the first kind, which reaches furthest.

    """
    found: list[CacheGraph] = []
    refusals: list[BudgetOutOfReach] = []
    for make in makes:
        try:
            found += make()
        except BudgetOutOfReach as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def preferred(found: Sequence[CacheGraph]) -> CacheGraph:
    """Return the graph of the least expected error, or that of the whole output where it ties.

    On the clock a graph of the whole output is at the bound of its MACs, others are above theirs.
    """
    least = least_expected(found)
    whole = (graph for graph in found if graph.layers == (WHOLE_OUTPUT,) and _ties(graph, least))
    return next(whole, least)


def least_expected(found: Iterable[CacheGraph]) -> CacheGraph:
    """Return the graph of the least expected error."""
    return min(found, key=lambda graph: float(graph.measured[ERROR]))


def _ties(graph: CacheGraph, least: CacheGraph) -> bool:
    """Return whether a graph is as good as the one of the least expected error, at no more MACs."""
    error, worth = ([float(g.measured[name]) for g in (graph, least)] for name in (ERROR, WORTH))
    return error[0] <= TIE * error[1] and worth[0] <= worth[1] + NEAR_BUDGET
