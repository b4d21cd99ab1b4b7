"""Predictions of reused layers in router training: the last output, or the line in t through the last two."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from l2c.backbones.layer_cache import LayerCache, LayerOutput
from l2c.diffusion import Solver
from l2c.graph.predictor import HOLD, ahead, line_slope
from l2c.training.routers.routers import Routers
from l2c.training.routers.settings import LEARNED


class Predictor:
    """Make the cache of a routed evaluation m from full passes at the evaluations before.

    The evaluation m - 1 always computes everything, m - 2 may be routed. The line in t therefore goes through the
    outputs at m - 1 and at m - 2 where today's router computes a layer there, else at m - 3, as the exported graph
    will.

    Args:
        solver: gives t of each evaluation.
        routers: read for what is computed at m - 2.
        reuse: `hold` or `linear`.
        threshold: a layer is computed where its soft weight exceeds this.

    """

    def __init__(self, solver: Solver, routers: Routers, *, reuse: str = HOLD, threshold: float = 0.5) -> None:
        if reuse not in LEARNED:
            raise ValueError(f"router.reuse must be {' or '.join(LEARNED)}, got {reuse!r}")
        self.timesteps = solver.timesteps
        self.routers = routers
        self.threshold = threshold
        self.depth = 1 if reuse == HOLD else 3  # evaluations before m whose outputs are read

    @torch.no_grad()
    def __call__(self, evaluation: int, passes: Mapping[int, LayerCache]) -> LayerCache:
        """Return the prediction for each layer at a routed evaluation, from full passes by their evaluation."""
        last = passes[evaluation - 1]
        if self.depth == 1:
            return last
        return tuple(self._line(evaluation, layer, output, passes) for layer, output in enumerate(last))

    def _line(
        self, evaluation: int, layer: int, output: LayerOutput, passes: Mapping[int, LayerCache]
    ) -> LayerOutput:
        source = evaluation - 2
        if source in self.routers.evaluations and not self.routers.row(source)[layer] > self.threshold:
            source -= 1
        before = passes[source][layer] if source >= 0 else None
        if before is None or output is None:
            return output
        t = self.timesteps
        return ahead(output, before, line_slope(t[evaluation], t[evaluation - 1], t[source]))
