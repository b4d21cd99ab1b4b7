"""Layers and whole outputs in one graph: which evaluations run the network, and which layers compute in those.

An evaluation that reuses layers still pays for what is always computed and for each layer that it computes; one that
reuses the whole output pays nothing. So few evaluations may run with some layers reused, where either kind of graph
alone would run fewer whole ones or more thin ones. The layers of an evaluation that runs read the evaluations before
that ran: their responses are those to such outputs. What both kinds change in the image adds up, to first order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from l2c.calibration.measurements import Measurements
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.graph.predictor import FITTED, WEIGHTED
from l2c.graph.statistics import SLACK
from l2c.policies.allocation import Allocation, Array
from l2c.policies.budget import NEAR, BudgetOutOfReach
from l2c.policies.context import PolicyContext
from l2c.policies.gram import with_expected

ORDERS = (2, 3)  # past outputs that are read
RUNS = (1.25, 1.45, 1.65)  # evaluations that run, as multiples of the budget: where the least errors were found


def of_both(context: PolicyContext, whole: Measurements, worth: float, *, max_span: int) -> list[CacheGraph]:
    """Return the graphs of a budget, over a few numbers of evaluations that run and of past outputs that are read.

    Args:
        context: context of the layers, with `responses` in its calibration.
        whole: calibration of the whole output, see `Mixed`.
        worth: the budget in evaluations' worth of MACs.
        max_span: see `Mixed`.

    Raises:
        BudgetOutOfReach: if the budget lies outside of one evaluation's worth and all of them, or no number of
            evaluations leads to it.

    """
    context.check_reach(worth, 1.0)
    count, least = context.blank.num_evaluations, math.ceil(worth - SLACK)
    numbers = {min(max(round(worth * each), least), count - 1) for each in RUNS}
    kinds = [Mixed(context, whole, max_span, order) for order in ORDERS]
    found = [graph for kind in kinds for graph in kind.graphs(worth, numbers)]
    if not found:
        raise BudgetOutOfReach(
            f"no evaluations that run with some layers reused cost {worth:g} evaluations' worth of MACs in all; "
            "take a larger budget"
        )
    return found


@dataclass(frozen=True)
class Mixed:
    """Layers and whole outputs of one sampler, allocated together.

    Attributes:
        context: context of the layers, with `responses` in its calibration.
        whole: calibration of the whole output at the same times, along the same directions.
        max_span: evaluations in a row that may reuse: of those that run, for layers; of all, for the output.
        order: past outputs that a layer or the whole output reads, 2..4.

    """

    context: PolicyContext
    whole: Measurements
    max_span: int
    order: int = 2

    def graphs(self, worth: float, numbers: Collection[int] = ()) -> Iterator[CacheGraph]:
        """Yield graphs of a budget, one for each number of evaluations that run, from the largest down.

        Numbers whose graphs miss the budget are left out, and the number of all, which graphs of the layers have.

        Args:
            worth: the budget in evaluations' worth of MACs.
            numbers: numbers of evaluations that run; none = all that can be.

        """
        count, cost = self.context.blank.num_evaluations, self.context.cost
        possible = range(math.ceil(worth - SLACK), count)
        outputs = self._outputs()
        for runs in sorted(set(numbers or possible).intersection(possible), reverse=True):
            outputs.grow(count - runs)
            if int(outputs.rows.sum()) != runs:  # no more can be reused within the span
                return
            layers = self._layers(outputs)
            to_save = cost.to_save(worth, runs)
            layers.grow(to_save)
            if layers.saved > to_save - NEAR * cost.evaluation:
                yield self._graph(outputs, layers, worth)

    def of_rows(self, rows: Sequence[Sequence[bool]]) -> CacheGraph | None:
        """Return the graph of some rows with fitted weights; None where they read beyond the measured ages."""
        bits = np.array(rows)
        outputs, reuse = self._outputs(), [FITTED] * len(rows)
        if not outputs.set(bits[:, -1:], reuse):
            return None
        layers = self._layers(outputs)
        runs = bits[bits[:, -1], :-1]
        return self._graph(outputs, layers) if layers.set(runs, reuse[: len(runs)]) else None

    def _outputs(self) -> Allocation:
        """Return the whole outputs, all computed."""
        return Allocation(
            self.whole.tensor("responses").numpy(),
            self.context.blank.timesteps,
            (1,),
            max_span=self.max_span,
            reuses=(FITTED,),
            order=self.order,
        )

    def _layers(self, outputs: Allocation) -> Allocation:
        """Return the layers of the evaluations that run, all computed."""
        runs = np.flatnonzero(outputs.rows[:, 0]).tolist()
        responses = self.context.required_calibration().tensor("responses").numpy()
        again = read_again(self.whole.tensor("responses").numpy()[:, 0], outputs)
        return Allocation(
            among(responses, runs) * again[runs, None, None, None],
            [self.context.blank.timesteps[e] for e in runs],
            self.context.cost.layers,
            max_span=self.max_span,
            reuses=(FITTED,),
            order=self.order,
            offset=outputs.total,
        )

    def _graph(self, outputs: Allocation, layers: Allocation, worth: float | None = None) -> CacheGraph:
        context = self.context
        runs, layer_names = np.flatnonzero(outputs.rows[:, 0]).tolist(), context.blank.layers
        rows = [(False,) * (len(layer_names) + 1)] * len(outputs.rows)
        sets = list(outputs.fitted_sets())
        for e, row, of_row in zip(runs, layers.rows.tolist(), layers.fitted_sets(), strict=True):
            rows[e], sets[e] = (*row, True), of_row
        blank = CacheGraph.blank(replace(context.blank.binding, layers=(*layer_names, WHOLE_OUTPUT)))
        graph = replace(context, blank=blank).graph(
            rows,
            "gram",
            reuse=(WEIGHTED,) * len(rows),
            weights=tuple(sets),
            budget=worth,
            runs=len(runs),
            order=self.order,
            max_span=self.max_span,
        )
        return with_expected(context, graph, layers.total, self.whole.corrections)


def as_both(graph: CacheGraph, layers: Sequence[str]) -> CacheGraph:
    """Return a graph of the layers or of the whole output as one of both that computes and reuses the same.

    Args:
        graph: the graph.
        layers: the network's own layers.

    """
    whole = graph.layers == (WHOLE_OUTPUT,)
    rows = tuple(row * (len(layers) + 1) if whole else (*row, True) for row in graph.rows)
    return graph.replace(layers=(*layers, WHOLE_OUTPUT), rows=rows)


def same_directions(layers: Measurements, whole: Measurements) -> bool:
    """Return whether responses of layers and of the whole output can be along the same directions."""
    shapes = [one.tensor("responses").shape for one in (layers, whole)]
    return shapes[0][0] == shapes[1][0] and shapes[0][3] == shapes[1][3]


def read_again(responses: Array, outputs: Allocation) -> Array:
    """Return by how much a change of each evaluation's output counts, because later evaluations read it too.

    An evaluation e' that reads the output of e with a weight w adds w times what the change does there. How much that
    is, relative to e, is taken from the step between two outputs, whose response is known at both: least squares over
    the directions.

    Args:
        responses: (E, A, M), of each evaluation to the whole outputs 1..A evaluations before.
        outputs: the whole outputs that are reused.

    Returns:
        (E,), 1 where nothing reads an output again.

    """
    count, ages, _ = responses.shape
    factors = np.ones(count, dtype=np.float32)
    sets = outputs.fitted_sets()
    for e in np.flatnonzero(~outputs.rows[:, 0]).tolist():
        past = np.flatnonzero(outputs.rows[:e, 0])[::-1].tolist()
        for source, weight in zip(past, sets[e][0], strict=False):
            age = e - source
            if not source or age + 1 > ages:  # the first one computes every layer
                continue
            own, later = responses[source, 0], responses[e, age] - responses[e, age - 1]
            ratio = float(later @ own) / max(float(own @ own), 1e-30)
            factors[source] += weight * ratio if math.isfinite(ratio) else 0.0
    return factors


def among(responses: Array, runs: Sequence[int]) -> Array:
    """Return the responses of some evaluations to the outputs of those among them.

    Args:
        responses: (E, L, A, M), of each evaluation to the outputs 1..A evaluations before.
        runs: R evaluations in order.

    Returns:
        (R, L, A, M), to the outputs 1..A of these evaluations before; NaN where that was not measured.

    """
    _, num_layers, ages, size = responses.shape
    found = np.full((len(runs), num_layers, ages, size), np.nan, dtype=np.float32)
    for i, e in enumerate(runs):
        for age in range(1, min(i, ages) + 1):
            before = e - runs[i - age]
            if before <= ages:
                found[i, :, age - 1] = responses[e, :, before - 1]
    return found
