"""Methods that decide while they sample, separately for each image: comparisons, which write no graph.

Each looks at a signal at every evaluation and either computes the middle blocks of the network or puts back what they
added to the tokens when they were last computed. All images of a batch are computed, and each keeps the result that
its own decision selects, as in a batch of one; MACs are counted as a batch of one would execute them, by the
convention of `l2c.calibration.cost` (embeddings and modulations are always computed).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.dit import DiTBlock, modulate
from l2c.backbones.layer_cache import Pass, call_block
from l2c.calibration.cost import count_macs
from l2c.graph.predictor import ahead
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.inputs import check_images
from l2c.sampling.sampler import Sampler


class Criterion(ABC):
    """Decides which images compute their middle blocks at an evaluation; make a new one for each trajectory."""

    signal: Tensor

    @abstractmethod
    def computes(self, evaluation: int, signal: Tensor) -> Tensor:
        """Return for each image whether it computes, (N,) bools; not called for the first evaluation.

        Args:
            evaluation: its index.
            signal: (N, F), of each image: see `DynamicMethod.signal`.

        """

    def computed(self, signal: Tensor, which: Tensor) -> None:
        """Record the signals (N, F) of an evaluation and the images (N,) that computed there."""
        self.signal = signal if not hasattr(self, "signal") else torch.where(which[:, None], signal, self.signal)


class Change(Criterion):
    """Compute where the mean absolute change of the signal since the last computing exceeds a share of its size.

    Args:
        threshold: the share.
        warmup: evaluations at the start that compute.

    """

    def __init__(self, threshold: float, *, warmup: int = 1) -> None:
        self.threshold, self.warmup = threshold, warmup

    def computes(self, evaluation: int, signal: Tensor) -> Tensor:
        """See `Criterion.computes`."""
        change = (signal - self.signal).abs().mean(1) / self.signal.abs().mean(1)
        return (change > self.threshold) | torch.tensor(evaluation < self.warmup)


class Accumulated(Criterion):
    """TeaCache: compute where the summed estimates of the output's change since the last computing reach a threshold.

    The estimate is a polynomial in the relative change of the signal since the evaluation before; the first and the
    last evaluation compute.

    Args:
        threshold: threshold of the sum.
        coefficients: coefficients of the polynomial, the highest power first, as `numpy.polyfit` gives them.
        num_evaluations: number of evaluations of the trajectory.

    """

    def __init__(self, threshold: float, coefficients: tuple[float, ...], num_evaluations: int) -> None:
        self.threshold, self.coefficients, self.last = threshold, coefficients, num_evaluations - 1
        self._sum: Tensor | float = 0.0

    def computes(self, evaluation: int, signal: Tensor) -> Tensor:
        """See `Criterion.computes`."""
        change = (signal - self.signal).abs().mean(1) / self.signal.abs().mean(1)
        estimate = torch.zeros_like(change)
        for coefficient in self.coefficients:
            estimate = estimate * change + coefficient
        self._sum = self._sum + estimate.clamp_min(0)
        which = (self._sum >= self.threshold) | torch.tensor(evaluation == self.last)
        self._sum = torch.where(which, 0.0, self._sum)
        return which

    def computed(self, signal: Tensor, which: Tensor) -> None:
        """Record the signal of every evaluation."""
        self.signal = signal


class Magnitude(Criterion):
    """MagCache: reuse while the error estimated from calibrated ratios of residual sizes is within a threshold.

    Args:
        threshold: threshold of the summed |1 - product of ratios since the last computing|.
        ratios: (E,), mean size of the residual over that of the evaluation before; the first is not read.
        max_skips: evaluations in a row that may reuse.
        retention: share of the evaluations at the start that compute.

    """

    def __init__(
        self, threshold: float, ratios: tuple[float, ...], *, max_skips: int = 5, retention: float = 0.2
    ) -> None:
        self.threshold, self.ratios, self.max_skips = threshold, ratios, max_skips
        self.first = int(retention * len(ratios) + 0.5)
        self._ratio, self._error, self._skips = 1.0, 0.0, 0

    def computes(self, evaluation: int, signal: Tensor) -> Tensor:
        """See `Criterion.computes`; images do not differ."""
        self._ratio *= self.ratios[evaluation]
        self._error += abs(1 - self._ratio)
        self._skips += 1
        whole = evaluation < self.first or self._error > self.threshold or self._skips > self.max_skips
        if whole:
            self._ratio, self._error, self._skips = 1.0, 0.0, 0
        return torch.full((len(signal),), whole, device=signal.device)


@dataclass(frozen=True)
class DynamicMethod:
    """A dynamic method at any threshold.

    Attributes:
        criterion: makes the criterion of a threshold.
        front: blocks at the start that always compute; the signal is what they add to the tokens, or, of none, the
            input of the first block as it is modulated.
        back: blocks at the end that always compute.
        forecast: extrapolate the line through the last two computed residuals, by evaluations, instead of holding.

    """

    criterion: Callable[[float], Criterion]
    front: int = 1
    back: int = 0
    forecast: bool = False


def check_middle(front: int, back: int, num_blocks: int, prefix: str = "") -> None:
    """Refuse numbers of blocks at the ends that leave none to reuse.

    Args:
        front: blocks at the start that always compute.
        back: blocks at the end that do.
        num_blocks: number of blocks of the backbone, with a layer of attention and one of its feed-forward each.
        prefix: beginning of the message.

    Raises:
        ValueError: if none is left, or a number is negative.

    """
    if front < 0 or back < 0 or front + back >= num_blocks:
        mend = (
            "give smaller numbers" if num_blocks else "leave model.layers at its default: dynamic methods skip blocks"
        )
        raise ValueError(
            f"{prefix}front + back must be below the {num_blocks} blocks, got {front} and {back}: some blocks must "
            f"be left to reuse; {mend}"
        )


class DynamicPass(Pass):
    """The passes of one trajectory under a dynamic method, one evaluation after the other.

    Args:
        method: the deciding method.
        threshold: threshold of its criterion.
        num_blocks: number of blocks of the backbone.
        branches: rows of the batch that belong to one image, 2 with guidance; they decide together.

    Attributes:
        decisions: for each evaluation, whether each image computed, (N,) bools.
        entry: tokens (R, T, D) before the middle blocks of the last evaluation.
        residual: sum that the middle blocks added to the tokens, of images that computed.

    """

    entry: Tensor
    residual: Tensor

    def __init__(self, method: DynamicMethod, threshold: float, num_blocks: int, branches: int) -> None:
        super().__init__(call_block)
        self.method, self.branches = method, branches
        self.middle = range(method.front, num_blocks - method.back)
        check_middle(method.front, method.back, num_blocks)
        self.criterion = method.criterion(threshold)
        self.decisions: list[Tensor] = []
        self._past: list[tuple[Tensor, Tensor]] = []  # of the last two computings: residual, evaluation of each image

    def run(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        """Run block `index`; see `Pass.run`."""
        if index == 0:
            self._start = inputs[0]
        if index == self.middle.start:
            self._enter(block, *inputs)
        inside = index in self.middle
        x = inputs[0] if inside and not self.decisions[-1].any() else self._outputs(block, *inputs)[0]
        return self._leave(x) if index == self.middle.stop - 1 else x

    def _enter(self, block: nn.Module, x: Tensor, *others: Any) -> None:
        """Decide, before the first of the middle blocks."""
        self.entry = x
        seen = x - self._start if self.method.front else modulated(block, x, *others)
        signal = torch.cat(seen.flatten(1).chunk(self.branches), dim=1)  # (N, F)
        evaluation = len(self.decisions)
        everyone = torch.ones(len(signal), dtype=torch.bool, device=x.device)
        which = self.criterion.computes(evaluation, signal) if evaluation else everyone
        self.decisions.append(which)
        self.criterion.computed(signal, which)

    def _leave(self, x: Tensor) -> Tensor:
        """Return the tokens after the middle blocks, and remember the residuals of the images that computed."""
        evaluation, which = len(self.decisions) - 1, self.decisions[-1].repeat(self.branches)
        residual, now = x - self.entry, torch.full((len(x),), float(evaluation), device=x.device)
        self.residual = residual
        if not self._past:
            self._past = [(residual, now)]
            return x
        stands_in = self._stand_in(now)
        last, mask = self._past[0], which[:, None, None]
        newest = (torch.where(mask, residual, last[0]), torch.where(which, now, last[1]))
        before = self._past[-1]
        self._past = [newest, (torch.where(mask, last[0], before[0]), torch.where(which, last[1], before[1]))]
        return torch.where(mask, x, self.entry + stands_in)

    def _stand_in(self, now: Tensor) -> Tensor:
        (last, at), (before, at_before) = self._past[0], self._past[-1]
        if not self.method.forecast:
            return last
        distance = (at - at_before).clamp_min(1.0)  # equal residuals where an image has computed only once
        return ahead(last, before, ((now - at) / distance)[:, None, None])


def modulated(block: nn.Module, x: Tensor, *others: Any) -> Tensor:
    """Return the input (N, T, D) of a block's attention as its conditioning modulates it; of others, the tokens."""
    if not isinstance(block, DiTBlock):
        return x
    shift, scale = others[0].chunk(6, dim=1)[:2]
    return modulate(block.norm1(x), shift, scale)


class DynamicSampler:
    """A sampler whose trajectories are those of a dynamic method.

    Args:
        uncached: brings backbone, solver and guidance.
        method: the deciding method.
        threshold: threshold of its criterion.

    Attributes:
        graph: None; there is none.
        evaluations_worth: mean MACs of the images drawn so far, in full evaluations.

    """

    graph = None

    def __init__(self, uncached: Sampler, method: DynamicMethod, threshold: float) -> None:
        self.uncached, self.method, self.threshold = uncached, method, threshold
        self.backbone, self.solver, self.guidance = uncached.backbone, uncached.solver, uncached.guidance
        cost = count_macs(self.backbone)
        self._of_blocks = [sum(cost.layers[i : i + 2]) / cost.evaluation for i in range(0, len(cost.layers), 2)]
        self._spent, self._drawn = 0.0, 0

    @property
    def evaluations_worth(self) -> float:
        """Mean MACs of the images drawn so far, in full evaluations."""
        return self._spent / max(self._drawn, 1)

    @torch.no_grad()
    def sample(
        self, labels: Tensor | None, *, noise: Tensor, seed: int | None = None, first_image: int = 0
    ) -> Tensor:
        """Return images (N, C, H, W) for labels (N,) and noise (N, C, H, W); seeds are those of other samplers.

        Raises:
            ValueError: if an image is not finite.

        """
        network = GuidedBackbone(self.backbone, labels, self.guidance)
        branches = self.guidance.rows(len(noise)) // len(noise)
        layers = DynamicPass(self.method, self.threshold, len(self._of_blocks), branches)

        def evaluate(x: Tensor, t: float) -> Tensor:
            batch, times = network.inputs(x, t)
            output = self.backbone.run(batch, self.backbone.condition(times, network.y), layers)
            return network.merge(output, t)

        images = self.solver.sample(evaluate, noise)
        check_images(images)
        middle = sum(self._of_blocks[i] for i in layers.middle)
        skipped = sum(float((~which).sum()) for which in layers.decisions)
        self._spent += self.solver.num_evaluations * len(noise) - middle * skipped
        self._drawn += len(noise)
        return images
