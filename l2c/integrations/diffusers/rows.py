"""Where the rows of a pipeline's call come from: a finished graph, one resampled, or a calibration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from l2c.graph.binding import Binding
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import ends_in_output
from l2c.graph.resampling import nearest, nearest_rows, resampled
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers.fit import TOLERANCE, check_scheduler, check_timesteps
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver

Followed = tuple[CacheGraph, Sequence[int]]
log = logging.getLogger(__name__)


class MakesGraphs(Protocol):
    """A calibration: makes the graph of a budget for a solver, see `l2c.Calibration`."""

    @property
    def binding(self) -> Binding:
        """What it is valid for."""

    def graph(self, budget: Any, *, solver: Any) -> CacheGraph:
        """Return the graph of a budget."""


class FinishedRows:
    """The rows of a graph, for its own timesteps alone.

    Args:
        graph: the graph, under the model's own layer names.
        part: the graph's evaluations are some of the scheduler's; another denoiser makes the others.

    Attributes:
        first: the graph that stands before the first call.
        or_else: what else than its own times lets it run, words for messages.

    """

    def __init__(self, graph: CacheGraph, *, part: bool = False) -> None:
        self.first = graph
        self.part = part
        self.or_else = "or make a graph for these timesteps" if part else "or apply it with resample=True"

    def at(self, timesteps: Sequence[float], t: float, scheduler: Any, end: int) -> Followed:
        """Return the graph of a trajectory, and for each evaluation the row of the given graph that it follows.

        Args:
            timesteps: the scheduler's timesteps, in the units of the model.
            t: the one that the trajectory begins at.
            scheduler: the scheduler, its timesteps set.
            end: the number of timesteps before the trajectory's end.

        Raises:
            ValueError: if there is no graph for these.

        """
        check_scheduler(self.first, scheduler, self.or_else)
        whole = self.part or len(timesteps) == self.first.num_evaluations  # some of whose rows may not be needed
        timesteps = timesteps if whole else timesteps[:end]
        check_timesteps(self.first, within(self.first, timesteps) if self.part else timesteps, self.or_else)
        return self.first, range(self.first.num_evaluations)


def _destroyed(graph: CacheGraph, result: CacheGraph) -> str:
    """Return what the warning adds where larger steps than a graph was made for hold the whole output."""
    fewer = result.num_evaluations < graph.num_evaluations
    return (
        " (whole outputs held over larger steps have destroyed images)"
        if fewer and ends_in_output(graph.layers)
        else ""
    )


class ResampledRows:
    """The rows of a graph for any timesteps: every evaluation gets the row of the nearest one."""

    or_else = "or call the pipeline from the first one on"
    part = False

    def __init__(self, graph: CacheGraph) -> None:
        self.first = graph

    def at(self, timesteps: Sequence[float], t: float, scheduler: Any, end: int) -> Followed:
        """Return the resampled graph and its rows; a warning says what it loses. See `FinishedRows.at`."""
        result = resampled(self.first, timesteps)
        if result is self.first:
            return result, range(result.num_evaluations)
        log.warning(
            "the graph was made for %d evaluations and is resampled to %d by nearest timestep, its slopes and "
            "weights rescaled to the new distances; its error was not measured and may be many times that of a graph "
            "made for these timesteps%s, which a calibration makes without the model: l2c.apply(pipe, calibration, "
            "budget=...)\n%s",
            self.first.num_evaluations,
            result.num_evaluations,
            _destroyed(self.first, result),
            result.summary(),
        )
        return result, nearest_rows(self.first, timesteps)


class CalibratedRows:
    """Rows that a calibration makes at the first call of each schedule.

    Args:
        calibration: measured on this model.
        budget: see `l2c.policies.budget`; a share counts of the trajectory that runs.
        blank: an all-compute graph of the calibration under the model's own layer names.

    Attributes:
        first: the graph that stands before the first call; it computes everything.

    """

    or_else = "or measure a calibration with these"
    part = False

    def __init__(self, calibration: MakesGraphs, budget: float | str, blank: CacheGraph) -> None:
        self.first = blank
        self._calibration = calibration
        self._budget = budget

    def at(self, timesteps: Sequence[float], t: float, scheduler: Any, end: int) -> Followed:
        """Return the graph of the trajectory from `t` on, and its rows. See `FinishedRows.at`."""
        check_scheduler(self.first, scheduler, self.or_else)
        begin = nearest(timesteps[:end], t)
        if end - begin == 1:  # nothing to reuse
            return with_evaluations(self.first, [0], timesteps=(timesteps[begin],)), range(1)
        solver = SchedulerSolver(scheduler, timesteps[:end], first=begin)
        graph = self._calibration.graph(self._budget, solver=solver).replace(layers=self.first.layers)
        return graph, range(graph.num_evaluations)


Rows = FinishedRows | ResampledRows | CalibratedRows


def tolerance(timesteps: Sequence[float], t: float) -> float:
    """Return by how much a timestep may differ from one of a graph's."""
    return TOLERANCE * max(map(abs, timesteps)) + getattr(t, "eps", 0.0) * abs(t)


def within(graph: CacheGraph, values: Sequence[float]) -> list[float]:
    """Return the timesteps that lie between the graph's first and last."""
    low, high = min(graph.timesteps), max(graph.timesteps)
    return [t for t in values if low - tolerance(graph.timesteps, t) <= t <= high + tolerance(graph.timesteps, t)]
