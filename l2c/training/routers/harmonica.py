"""Step-wise denoising training of HarmoniCa (arXiv 2410.01723): routers learn on the cached trajectory itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.backbones.layer_cache import LayerCache
from l2c.data.share import Share
from l2c.diffusion import Evaluation, Guidance, Solver, Trajectory
from l2c.io.seeds import Stream
from l2c.sampling.guided import GuidedBackbone
from l2c.training.routers.error_weights import VARIANTS, ErrorWeights
from l2c.training.routers.objectives import LearningToCache, RouterLoss
from l2c.training.routers.pairs import WHOLE, Pair
from l2c.training.routers.routers import Routers


class StepwiseDenoising(LearningToCache):
    """Objective and source of pairs at once, since the student's output moves its trajectory on.

    From pure noise the first evaluation computes everything; at each later one the teacher is a full pass at the
    student's own state, the student a soft pass whose output, detached, gives the next state. A layer's cached
    output is refreshed where its router exceeds the threshold. Guidance is inside the loss:
    `weight_t * error_t + penalty * cost of computing`.

    Args:
        backbone: the frozen network.
        solver: the solver of the trajectory.
        routers: routers of every evaluation but the first; read to resume inside a trajectory.
        guidance: the guidance of the trajectory.
        penalty: weight of the cost of computing (beta in the publication).
        layer_weights: (2L,), see `LearningToCache`.
        error: `mean` or `sum`.
        threshold: a layer is computed, and its cache refreshed, above it.
        straight_through: see `LearningToCache`.
        error_weights: `sensitivity`, `disabled_once`, `cumulative` (see `ErrorWeights`) or `none` for ones.
        weights_every: steps between two measurements of the weights, which begin before the first one.
        weight_images: images of a measurement.
        seed: seed of those images, and of what a stochastic solver adds.

    """

    def __init__(
        self,
        backbone: Backbone,
        solver: Solver,
        routers: Routers,
        *,
        guidance: Guidance,
        penalty: float,
        layer_weights: Tensor,
        error: str = "mean",
        threshold: float = 0.5,
        straight_through: bool = False,
        error_weights: str = "disabled_once",
        weights_every: int = 500,
        weight_images: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            penalty=penalty,
            layer_weights=layer_weights,
            error=error,
            threshold=threshold,
            straight_through=straight_through,
        )
        if error_weights not in (*VARIANTS, "none"):
            raise ValueError(
                f"router.error_weights must be {', '.join(VARIANTS)} or none, got {error_weights!r}; none weighs all "
                "evaluations alike"
            )
        if weights_every < 1:
            raise ValueError(f"router.weights_every must be at least 1 step, got {weights_every}")
        self.solver = solver
        self.routers = routers
        self.guidance = guidance
        self.weights_every = weights_every
        self.seed = seed
        self.measure = (
            None
            if error_weights == "none"
            else ErrorWeights(backbone, solver, guidance, variant=error_weights, num_images=weight_images, seed=seed)
        )
        self.error_weights = [1.0] * solver.num_evaluations
        self._open: dict[int, _OpenTrajectory] = {}  # by part
        self._current: _OpenTrajectory | None = None

    def evaluation(self, step: int) -> int:
        """Return the evaluation that a training step visits: 1, 2, ..., N - 1, and again."""
        return self.routers.evaluations[step % len(self.routers.evaluations)]

    @torch.no_grad()
    def draw(self, batch: tuple[Tensor, Tensor], step: int, part: Share = WHOLE) -> Pair:
        """Make the pair of a training step from noise (N, C, H, W) and labels (N,) of its trajectory."""
        if step == 0:
            self._measure(self.routers)
        run = self._open.get(part.index)
        evaluation = self.evaluation(step)
        if run is None or run.evaluation != evaluation or run.step != step or evaluation == 1:
            run = self._start(batch, step, part)
            while run.evaluation < evaluation:  # resumed inside a trajectory: walk there with the current routers
                pair = self._pair(run)
                row = self.seen(self.routers.row(run.evaluation).to(pair.x))
                output, cache = self.backbone.forward_cached(pair.x, pair.t, pair.y, row, pair.cache)
                self._advance(run, row, output, cache)
            self._open[part.index] = run
        run.step = step
        self._current = run
        return self._pair(run)

    def __call__(self, pair: Pair, row: Tensor) -> RouterLoss:
        """Compare the student with the teacher after guidance, then move the student's trajectory on."""
        run = self._current
        assert run is not None, "draw comes first"
        seen = self.seen(row)
        student, cache = self.backbone.forward_cached(pair.x, pair.t, pair.y, seen, pair.cache)
        merged = (run.network.merge(output, run.request.t) for output in (student, pair.teacher))
        per_sample = self.per_sample(*merged)
        error = per_sample.mean()
        penalty = torch.dot(row, self.layer_weights.to(row))
        loss = self.error_weights[run.evaluation] * error + self.penalty * penalty
        self._advance(run, row.detach(), student.detach(), cache)
        return RouterLoss(loss, error, penalty, per_sample)

    def after_step(self, routers: Routers, error: float, step: int) -> None:
        """Measure the error weights anew every so many steps."""
        if step % self.weights_every == 0:
            self._measure(routers)

    def _measure(self, routers: Routers) -> None:
        if self.measure is not None:
            self.error_weights = self.measure(routers.rows(self.solver.num_evaluations, self.threshold))

    def state(self) -> Mapping[str, Any]:
        """Return the error weights."""
        return {"error_weights": list(self.error_weights)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with stored error weights."""
        if state:
            self.error_weights = list(state["error_weights"])

    def _start(self, batch: tuple[Tensor, Tensor], step: int, part: Share) -> _OpenTrajectory:
        """Begin a trajectory: the first evaluation computes everything and fills the cache."""
        noise, labels = batch
        network = GuidedBackbone(self.backbone, labels if self.backbone.num_embedded_labels else None, self.guidance)
        trajectory = step // len(self.routers.evaluations)
        noise_source = Stream("solver noise of a training trajectory", self.seed, trajectory, part.index)
        run = _OpenTrajectory(self.solver.trajectory(noise, generator=noise_source), network, step)
        everything = (True,) * self.backbone.num_layers
        output, run.cache = self.backbone.forward_cached(*run.inputs(), network.y, everything)
        run.request = run.trajectory.send(network.merge(output, run.request.t))
        return run

    def _pair(self, run: _OpenTrajectory) -> Pair:
        x, times = run.inputs()
        assert run.cache is not None
        return Pair(x, times, run.network.y, run.cache, self.backbone(x, times, run.network.y))

    def _advance(self, run: _OpenTrajectory, row: Tensor, output: Tensor, cache: LayerCache) -> None:
        """Refresh what the routers compute and move on by the student's output."""
        assert run.cache is not None
        refreshed = (row > self.threshold).tolist()
        run.cache = tuple(
            new.detach() if fresh and new is not None else old
            for fresh, new, old in zip(refreshed, cache, run.cache, strict=True)
        )
        run.step += 1
        if run.evaluation < self.solver.num_evaluations - 1:
            run.request = run.trajectory.send(run.network.merge(output, run.request.t))


class _OpenTrajectory:
    """State of the student's trajectory between two training steps."""

    def __init__(self, trajectory: Trajectory, network: GuidedBackbone, step: int) -> None:
        self.trajectory = trajectory
        self.request: Evaluation = next(trajectory)
        self.network = network
        self.step = step  # the training step that comes next
        self.cache: LayerCache | None = None

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return the network's inputs and timesteps at the evaluation that comes next."""
        return self.network.inputs(self.request.x, self.request.t)

    @property
    def evaluation(self) -> int:
        """The evaluation that comes next."""
        return self.request.index
