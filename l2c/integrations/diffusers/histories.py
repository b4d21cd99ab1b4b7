"""Histories of a trajectory: the outputs of each guidance branch, and the branch that a forward belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from l2c.backbones.layer_form import Branch, ahead, over
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import LINEAR, WEIGHTED, Weights, combined, line_slope
from l2c.integrations.diffusers.recorded.conditions import PLAIN, same
from l2c.integrations.diffusers.recorded.feeders import Path
from l2c.io.tensors import leaves_of


class BranchHistory:
    """The computed outputs of one guidance branch that are read later, newest first, each with its t."""

    def __init__(self, num_layers: int) -> None:
        self.computed: list[list[tuple[float, Branch]]] = [[] for _ in range(num_layers)]
        self.t = 0.0
        self.evaluation = -1
        self.shape: tuple[int, ...] | None = None

    def begin(self, evaluation: int, t: float, shape: tuple[int, ...] | None) -> None:
        """Start an evaluation; one that does not come after the last, or another batch, means a new trajectory."""
        if evaluation <= self.evaluation or shape != self.shape:
            self.computed = [[] for _ in self.computed]
        self.evaluation, self.t, self.shape = evaluation, t, shape

    def stand_in(self, graph: CacheGraph, evaluation: int, layer: int, t: float) -> Branch | None:
        """Return the prediction for a layer as a graph has it; None where nothing was computed yet.

        Args:
            graph: the graph in use.
            evaluation: its row.
            layer: its index.
            t: timestep of this evaluation, as the model is given it.

        """
        reuse = graph.reuse[evaluation]
        if reuse == WEIGHTED:
            return self.sum_of(layer, graph.entry_weights[evaluation][layer])
        return self.value(layer, t, None if reuse == LINEAR else graph.entry_slopes[evaluation][layer])

    def value(self, layer: int, t: float, slope: float | None) -> Branch | None:
        """Return the prediction for a layer at t; None where nothing was computed yet.

        Args:
            layer: its index.
            t: timestep of this evaluation.
            slope: how far the last two outputs are followed; None = along the line in t through both.

        """
        if not self.computed[layer]:
            return None
        (t_last, last), *earlier = self.computed[layer]
        if not earlier or slope == 0:
            return last
        t_before, before = earlier[0]
        return ahead(last, before, line_slope(t, t_last, t_before) if slope is None else slope)

    def sum_of(self, layer: int, weights: Weights) -> Branch | None:
        """Return the weighted sum of a layer's last outputs; the last one where fewer were computed than weights."""
        outputs = [output for _, output in self.computed[layer]]
        if len(outputs) < len(weights):
            return outputs[0] if outputs else None
        return over(lambda *streams: combined(streams, weights), *outputs[: len(weights)])

    def update(self, layer: int, output: Branch | None, count: int) -> None:
        """Take a computed output, hold `count` of them."""
        newest = [] if output is None else [(self.t, output)]
        self.computed[layer] = [*newest, *self.computed[layer]][:count]

    @property
    def nbytes(self) -> int:
        """Memory held now, in bytes."""
        outputs = [output for held in self.computed for _, output in held]
        streams = [s for output in outputs for s in ((output,) if isinstance(output, Tensor) else output)]
        return sum(stream.nbytes for stream in streams if stream is not None)


class Branches:
    """The histories of one trajectory: by name where the pipeline gives one, else by what a forward is given.

    A forward belongs to the branch that was given the same conditions. Conditions that differ from evaluation to
    evaluation (another noisy input, a control's residuals) are found at the second one and not looked at any more;
    where they leave it open at the second evaluation, the branch with the fewest differences is taken.

    Args:
        num_layers: number of layers of the graph.

    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._named: dict[str, BranchHistory] = {}
        self._unnamed: list[_GivenBranch] = []
        self._evaluation = -1

    def named(self, name: str) -> BranchHistory:
        """Return the history of the branch of a name."""
        return self._named.setdefault(name, BranchHistory(self._num_layers))

    def given(self, evaluation: int, conditions: Mapping[str, Any]) -> BranchHistory:
        """Return the history of the branch that a forward without a name belongs to.

        Args:
            evaluation: evaluation of the forward.
            conditions: its arguments, the noisy input and the timestep aside.

        """
        if evaluation < self._evaluation:
            self._unnamed = []
        if evaluation != self._evaluation:
            for branch in self._unnamed:
                branch.ran = False
        self._evaluation = evaluation
        given = dict(leaves_of(conditions, PLAIN))
        free = [branch for branch in self._unnamed if not branch.ran]
        found = next((branch for branch in free if not branch.differences(given)), None)
        if found is None:
            new = [branch for branch in free if branch.stable is None and branch.history.evaluation < evaluation]
            found = min(new, key=lambda branch: len(branch.differences(given)), default=None)
        if found is None:
            found = _GivenBranch(BranchHistory(self._num_layers), given)
            self._unnamed.append(found)
        else:
            found.learn(given)
        found.ran = True
        return found.history

    @property
    def nbytes(self) -> int:
        """Memory held now, in bytes."""
        histories = [*self._named.values(), *(branch.history for branch in self._unnamed)]
        return sum(history.nbytes for history in histories)


class _GivenBranch:
    """A branch without a name, and the conditions that it is known by.

    Attributes:
        history: its outputs.
        stable: paths of the conditions that do not change; None = not known yet.
        ran: whether it had its forward at this evaluation.

    """

    def __init__(self, history: BranchHistory, given: dict[Path, Any]) -> None:
        self.history = history
        self.stable: set[Path] | None = None
        self.ran = False
        self._given = given

    def differences(self, given: Mapping[Path, Any]) -> set[Path]:
        """Return the names of conditions that are not this branch's."""
        names = {*given, *self._given} if self.stable is None else self.stable
        return {name for name in names if not same(self._given.get(name), given.get(name))}

    def learn(self, given: dict[Path, Any]) -> None:
        """Record another forward of this branch; conditions that differ are not stable."""
        differing = self.differences(given)
        self.stable = ({*given} if self.stable is None else self.stable) - differing
        self._given = {name: value for name, value in given.items() if name in self.stable}
