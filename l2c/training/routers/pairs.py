"""Training pairs for routers: neighbouring evaluations (s, m), m the routed one.

The pass at s fills the cache, the solver moves x_s to x_m, a full pass at x_m is the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.backbones.layer_cache import LayerCache
from l2c.data.share import Share
from l2c.diffusion import Evaluation, Guidance, Solver, Trajectory
from l2c.diffusion.solver import NoiseSource
from l2c.io.seeds import Stream
from l2c.sampling.guided import GuidedBackbone
from l2c.training.label_dropout import drop_labels
from l2c.training.routers.predicted import Predictor


@dataclass(frozen=True)
class Pair:
    """Everything a student pass at the routed evaluation needs.

    Attributes:
        x: (N, C, H, W), the state at the routed evaluation.
        t: (N,), its timestep.
        y: (N,) labels, some of them null; None for a backbone without labels.
        cache: predictions of the 2L layers, (N, T, D): outputs of the evaluation before, or those of `Predictor`.
        teacher: output of the full pass at x, (N, C or 2 C, H, W).

    """

    x: Tensor
    t: Tensor
    y: Tensor | None
    cache: LayerCache
    teacher: Tensor


WHOLE = Share()


class PairSource(Protocol):
    """A way to obtain the pairs of the training steps."""

    def evaluation(self, step: int) -> int:
        """Return the routed evaluation that a training step visits."""

    def draw(self, batch: tuple[Tensor, Tensor], step: int, part: Share = WHOLE) -> Pair:
        """Make the pair of a training step from a batch of the data module, or a part of it; no gradients."""


def _times(x: Tensor, t: float) -> Tensor:
    return torch.full((x.shape[0],), t, device=x.device)


class DataPairs:
    """Pairs from noised real images, as in Learning-to-Cache (arXiv 2406.01733, algorithm 1).

    A real image is noised to the start of the solver step that holds s, the solver moves it to x_m by full
    passes without guidance.

    Args:
        backbone: the frozen network.
        solver: the solver of the trajectory.
        routed: the routed evaluations.
        seed: seed of visits, noise and label dropout.
        label_dropout: share of labels replaced by the null label.
        visits: `balanced` visits every router once per cycle in random order, `random` draws one each step.
        round_times: noise to, and give the teacher and the student, whole timesteps, halves up (what the
            published U-ViT routers were trained with); the passes inside the solver keep theirs.
        predictor: makes the cache of more than the evaluation before; None = its outputs as they are.

    """

    def __init__(
        self,
        backbone: Backbone,
        solver: Solver,
        routed: Sequence[int],
        *,
        seed: int = 0,
        label_dropout: float = 0.1,
        visits: str = "balanced",
        round_times: bool = False,
        predictor: Predictor | None = None,
    ) -> None:
        if visits not in ("balanced", "random"):
            raise ValueError(f"router.visits must be balanced or random, got {visits!r}")
        self.backbone = backbone
        self.solver = solver
        self.routed = tuple(routed)
        self.seed = seed
        self.label_dropout = label_dropout
        self.visits = visits
        self.round_times = round_times
        self.predictor = predictor
        self._depth = 1 if predictor is None else predictor.depth  # evaluations whose outputs the cache is made of

    def first_step(self, evaluation: int) -> int:
        """Return the solver step that the passes before a routed evaluation begin with."""
        return self.solver.step_of(max(evaluation - self._depth, 0))

    def evaluation(self, step: int) -> int:
        """Return the routed evaluation that a training step visits."""
        count = len(self.routed)
        if self.visits == "random":
            return self.routed[int(Stream("visited evaluation", self.seed, step).integers(count))]
        cycle, position = divmod(step, count)
        order = Stream("order of a cycle's visits", self.seed, cycle).permutation(count)
        return self.routed[int(order[position])]

    def draw(self, batch: tuple[Tensor, Tensor], step: int, part: Share = WHOLE) -> Pair:
        """Make the pair of a training step from images (N, C, H, W) and labels (N,)."""
        x_0, y = batch
        total = len(x_0) * part.count  # drawn for the whole step, so that parts get what the whole would
        places = part.within(total)
        stream = Stream("noise and labels of a training step", self.seed, step)
        noise = stream((total, *x_0.shape[1:]))[places].to(x_0)
        null_label = self.backbone.conventions.null_label
        y = drop_labels(y.repeat(part.count), null_label, self.label_dropout, stream)[places]
        labels = y if self.backbone.num_embedded_labels else None
        return self.pair(x_0, noise, labels, self.evaluation(step), generator=stream)

    def start(self, x_0: Tensor, noise: Tensor, evaluation: int) -> Tensor:
        """Noise images (N, C, H, W) to the start of the first pass before a routed evaluation."""
        first = self.solver.steps[self.first_step(evaluation)][0]
        index = self.solver.indices[first]
        alpha, sigma = self.solver.schedule.marginal(math.floor(index + 0.5) if self.round_times else index)
        return alpha * x_0 + sigma * noise

    @torch.no_grad()
    def pair(
        self,
        x_0: Tensor,
        noise: Tensor,
        y: Tensor | None,
        evaluation: int,
        *,
        generator: NoiseSource | None = None,
    ) -> Pair:
        """Make the pair of a routed evaluation from images, their noise and their labels.

        The generator is the source of what a stochastic solver adds.
        """
        x, times, cache = self.state(x_0, noise, y, evaluation, generator=generator)
        return Pair(x, times, y, cache, self.backbone(x, times, y))

    @torch.no_grad()
    def state(
        self,
        x_0: Tensor,
        noise: Tensor,
        y: Tensor | None,
        evaluation: int,
        *,
        generator: NoiseSource | None = None,
    ) -> tuple[Tensor, Tensor, LayerCache]:
        """Return the inputs of both passes of a routed evaluation: x_m (N, C, H, W), t (N,) and the cache."""
        x = self.start(x_0, noise, evaluation)
        trajectory = self.solver.trajectory(x, first_step=self.first_step(evaluation), generator=generator)
        request = next(trajectory)
        everything = (True,) * self.backbone.num_layers
        read = range(evaluation - self._depth, evaluation)
        passes: dict[int, LayerCache] = {}
        while request.index < evaluation:
            keep = (request.index in read,) * self.backbone.num_layers
            times = _times(x, request.t)
            output, passes[request.index] = self.backbone.forward_cached(request.x, times, y, everything, None, keep)
            request = trajectory.send(output)
        cache = passes[evaluation - 1] if self.predictor is None else self.predictor(evaluation, passes)
        t = float(math.floor(request.t + 0.5)) if self.round_times else request.t
        return request.x, _times(x, t), cache


class TrajectoryPairs:
    """Pairs from the sampler's own trajectories under guidance: no images are needed.

    The routed evaluations of one trajectory are visited from noise to image. Its passes serve as cache and
    teacher, so that a training step costs the evaluations since the last visit and one student pass. With
    guidance the conditional and unconditional halves are trained on together, as the sampler runs them.

    Where a limited number of trajectories is revisited, states and teacher outputs are stored at the first visit;
    from the second on a step costs the pass that fills the cache and the student, and with stored layer outputs
    the student alone. The pairs are the same, bit for bit.

    Args:
        backbone: the frozen network.
        solver: the solver of the trajectory.
        routed: the routed evaluations.
        guidance: the guidance of the trajectory.
        seed: seed of what a stochastic solver adds.
        num_trajectories: batches of noise that are visited in turn, see `NoiseDataModule`; None = always new ones.
        store_outputs: keep the cached layer outputs of each pair as well, 2L x T x D numbers per sample.
        predictor: see `DataPairs`.

    """

    def __init__(
        self,
        backbone: Backbone,
        solver: Solver,
        routed: Sequence[int],
        *,
        guidance: Guidance,
        seed: int = 0,
        num_trajectories: int | None = None,
        store_outputs: bool = False,
        predictor: Predictor | None = None,
    ) -> None:
        self.backbone = backbone
        self.solver = solver
        self.routed = tuple(routed)
        self.guidance = guidance
        self.seed = seed
        self.predictor = predictor
        self._depth = 1 if predictor is None else predictor.depth
        self.num_trajectories = num_trajectories
        self.store_outputs = store_outputs
        self._stored: dict[tuple[int, int, int], _StoredPair] = {}  # by trajectory, part, evaluation
        self._open: dict[int, _OpenTrajectory] = {}  # by part

    def evaluation(self, step: int) -> int:
        """Return the routed evaluation that a training step visits."""
        return self.routed[step % len(self.routed)]

    @torch.no_grad()
    def draw(self, batch: tuple[Tensor, Tensor], step: int, part: Share = WHOLE) -> Pair:
        """Make the pair of a training step from noise (N, C, H, W) and labels (N,) of its trajectory."""
        noise, labels = batch
        network = GuidedBackbone(self.backbone, labels if self.backbone.num_embedded_labels else None, self.guidance)
        trajectory = step // len(self.routed)
        if self.num_trajectories is not None:
            trajectory %= self.num_trajectories
        evaluation = self.evaluation(step)
        key = trajectory, part.index, evaluation
        if key in self._stored:
            return self._revisit(self._stored[key], network)
        run = self._open.get(part.index)
        if run is None or step != run.next_step or step % len(self.routed) == 0:  # new, or resumed inside one
            source = Stream("solver noise of a training trajectory", self.seed, trajectory, part.index)
            run = _OpenTrajectory(self.solver.trajectory(noise, generator=source))
            self._open[part.index] = run
        before: Evaluation | None = None
        while True:
            request = run.request
            x, times = network.inputs(request.x, request.t)
            keep = (self.predictor is not None or request.index + 1 in self.routed,) * self.backbone.num_layers
            output, run.passes[request.index] = self.backbone.forward_cached(
                x, times, network.y, self._everything, None, keep
            )
            run.passes.pop(request.index - self._depth - 1, None)
            if request.index < self.solver.num_evaluations - 1:
                run.request = run.trajectory.send(network.merge(output, request.t))
            if request.index == evaluation:
                assert before is not None, "two routed evaluations never follow each other"
                run.next_step = step + 1
                last = run.passes[evaluation - 1]
                cache = last if self.predictor is None else self.predictor(evaluation, run.passes)
                if self.num_trajectories is not None:
                    held = _moved(cache, "cpu") if self.store_outputs else None
                    self._stored[key] = _StoredPair(before, request, output, held)
                return Pair(x, times, network.y, cache, output)
            before = request

    @property
    def _everything(self) -> tuple[bool, ...]:
        return (True,) * self.backbone.num_layers

    def _revisit(self, stored: _StoredPair, network: GuidedBackbone) -> Pair:
        """Return a stored pair, the cache computed again where it was not kept."""
        if stored.cache is not None:
            cache = _moved(stored.cache, stored.teacher.device)
        else:
            inputs = network.inputs(stored.before.x, stored.before.t)
            cache = self.backbone.forward_cached(*inputs, network.y, self._everything)[1]
        x, times = network.inputs(stored.request.x, stored.request.t)
        return Pair(x, times, network.y, cache, stored.teacher)


def _moved(cache: LayerCache, device: torch.device | str) -> LayerCache:
    return tuple(None if output is None else output.to(device) for output in cache)


@dataclass(frozen=True)
class _StoredPair:
    """Data for a revisit: evaluations s and m with their states, the teacher's output, and the cache if kept."""

    before: Evaluation
    request: Evaluation
    teacher: Tensor
    cache: LayerCache | None


class _OpenTrajectory:
    """State of a trajectory between two training steps."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.request: Evaluation = next(trajectory)
        self.passes: dict[int, LayerCache] = {}  # outputs of the last few evaluations
        self.next_step: int | None = None
