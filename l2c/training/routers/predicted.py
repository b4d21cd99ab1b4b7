"""Predictions of reused layers in router training, the same as those of the exported graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from l2c.backbones.layer_cache import LayerCache, LayerOutput
from l2c.diffusion import Solver
from l2c.graph.predictor import FORECASTS, HOLD, LINEAR, RULES, combined, line_slope, weights_of
from l2c.training.routers.routers import Routers

OUTPUTS = {HOLD: 1, LINEAR: 2, "taylor1": 2}  # past outputs that a predictor reads; the others read three


def reuse_under(solver: Solver, reuse: str) -> str:
    """Return the predictor under a solver: `hold` if the solver adds noise, which a forecast would extrapolate."""
    return HOLD if solver.stochastic else reuse


class Predictor:
    """Make the cache of a routed evaluation m from full passes at the evaluations before.

    The evaluations m - 1, m - 3, ... always compute everything, the others may be routed. A forecast therefore reads
    the output at m - 1 and the next ones back of evaluations where the current router computes the layer, as the
    exported graph will.

    Args:
        solver: gives t of each evaluation.
        routers: read for what is computed at routed evaluations.
        reuse: one of `graph.predictor.RULES`; see `reuse_under`.
        threshold: a layer is computed where its soft weight exceeds this.

    Attributes:
        depth: evaluations before m whose outputs may be read.

    """

    def __init__(self, solver: Solver, routers: Routers, *, reuse: str = HOLD, threshold: float = 0.5) -> None:
        if reuse not in RULES:
            raise ValueError(f"router.reuse must be {', '.join(RULES[:-1])} or {RULES[-1]}, got {reuse!r}")
        self.timesteps = solver.timesteps
        self.routers = routers
        self.threshold = threshold
        self.reuse = reuse_under(solver, reuse)
        self.outputs = OUTPUTS.get(self.reuse, 3)
        self.depth = 2 * self.outputs - 1

    @torch.no_grad()
    def __call__(self, evaluation: int, passes: Mapping[int, LayerCache]) -> LayerCache:
        """Return the prediction for each layer at a routed evaluation, from full passes by their evaluation."""
        last = passes[evaluation - 1]
        if self.reuse == HOLD:
            return last
        before = range(evaluation - 1, max(evaluation - 1 - self.depth, -1), -1)
        rows = {e: (self.routers.row(e) > self.threshold).tolist() for e in before if e in self.routers.evaluations}
        found: list[LayerOutput] = []
        for layer in range(len(last)):
            computed = [e for e in before if e not in rows or rows[e][layer]]
            found.append(self._forecast(evaluation, layer, computed[: self.outputs], passes))
        return tuple(found)

    def _forecast(
        self, evaluation: int, layer: int, computed: list[int], passes: Mapping[int, LayerCache]
    ) -> LayerOutput:
        t, outputs = self.timesteps, [passes[e][layer] for e in computed]
        values = [output for output in outputs if output is not None]
        if len(values) < len(outputs) or len(values) == 1:
            return outputs[0]
        if self.reuse == LINEAR:
            return combined(values, weights_of(line_slope(t[evaluation], t[computed[0]], t[computed[1]])))
        return combined(values, FORECASTS[self.reuse](evaluation, computed))
