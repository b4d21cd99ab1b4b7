"""True errors beside those that a calibration predicts, by which it corrects the errors that it expects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone
from l2c.calibration.calibration_file import ERRORS
from l2c.calibration.joining import free_noises
from l2c.calibration.measurements import Measurements
from l2c.calibration.target import Target, target_of
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import ERROR, WORTH
from l2c.policies.budget import Budget, BudgetOutOfReach
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.image_error import squared_errors
from l2c.sampling.inputs import NotFinite
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import cached_like, uncached_like

CORRECTED_AT = (0.75, 0.64, 0.5, 0.4, 0.32, 0.25)
CARRIED_AT = (0.64, 0.4, 0.25)  # at other numbers of evaluations, and for the whole output
LEAST_CORRECTED = 4  # evaluations
Reachable = Callable[[Target, Iterable[Budget]], Iterable[CacheGraph]]


@dataclass(frozen=True)
class Stage:
    """What true errors are measured at.

    Attributes:
        num_evaluations: of the uncached sampler.
        shares: budgets of the graphs, from the largest.
        num_trajectories: noises of each.

    """

    num_evaluations: int
    shares: Sequence[float]
    num_trajectories: int

    @property
    def images(self) -> int:
        """How many are drawn where every budget can be reached: uncached, and with each graph."""
        return (1 + len(self.shares)) * self.num_trajectories


def stages_of(measured: Measurements, shares: Sequence[float], num_trajectories: int) -> list[Stage]:
    """Return stages at the number of evaluations measured and, where responses are carried, at half and twice it."""
    own = measured.binding.num_evaluations
    carried = measured.grid is not None and measured.schedule is not None and num_trajectories >= 2
    others = [count for count in (2 * round(own / 4), 2 * own) if carried and count >= LEAST_CORRECTED]
    return [
        Stage(own, shares, num_trajectories),
        *(Stage(count, CARRIED_AT, num_trajectories // 2) for count in others),
    ]


def drawer(
    backbone: Backbone, count: int, *, first: int, seed: int, batch_size: int, bar: tqdm
) -> Callable[[Sampler], Tensor]:
    """Return what draws a sampler's images (N, C, H, W) of some noises.

    Args:
        backbone: gives shape and labels of the noises.
        count: noises.
        first: number of the first noise among those of the seed.
        seed: of the noises.
        batch_size: trajectories at a time.
        bar: over images.

    """
    noise = seeded_noise(backbone.input_shape, seed, count, first=first)
    labels = labels_in_turn(backbone.num_labels, count, first=first)
    how = {"batch_size": batch_size, "seed": seed, "first_image": first, "advance": bar}
    return partial(sample_in_batches, labels=labels, noise=noise, **how)


def true_errors(
    uncached: Sampler, graphs: Iterable[CacheGraph], target: Tensor, draw: Callable[[Sampler], Tensor]
) -> list[dict[str, float]]:
    """Return true errors beside predicted ones, see `calibration_file.CORRECTION`.

    Args:
        uncached: the sampler of the images that are right.
        graphs: of the same number of evaluations, with the errors predicted.
        target: (N, C, H, W), its images.
        draw: draws a sampler's images of the same noises.

    """
    num_evaluations = uncached.solver.num_evaluations
    found: list[dict[str, float]] = []
    for graph in graphs:
        try:
            images = draw(cached_like(uncached, graph))
        except NotFinite:  # says nothing of the others
            continue
        true = float(squared_errors(images, target).mean())
        predicted = float(graph.measured[ERROR])
        share = float(graph.measured[WORTH]) / num_evaluations
        if all(ERRORS[0] <= error <= ERRORS[1] for error in (true, predicted)):  # none is 0
            found.append({"num_evaluations": num_evaluations, "share": share, "predicted": predicted, "true": true})
    return found


def errors_of_stage(
    measured: Measurements,
    graphs: Reachable,
    sampler: Sampler,
    stage: Stage,
    targets: dict[Stage, Tensor],
    batch_size: int,
    bar: tqdm,
) -> list[dict[str, float]]:
    """Return true errors beside predicted ones of a stage; none where no budget of it can be reached.

    Args:
        measured: the calibration.
        graphs: makes its graphs, of the budgets that can be reached.
        sampler: the measured uncached sampler.
        stage: what true errors are measured at.
        targets: uncached images of stages that differ in their shares alone; those of this one are added.
        batch_size: trajectories at a time.
        bar: over images.

    """
    count = stage.num_evaluations
    own = count == measured.binding.num_evaluations
    seed, first = free_noises(measured.settings)
    try:
        made = graphs(target_of(measured, None if own else count), stage.shares)
        uncached = uncached_like(sampler, num_evaluations=count)
        number = stage.num_trajectories
        draw = drawer(uncached.backbone, number, first=first, seed=seed, batch_size=batch_size, bar=bar)
        key = replace(stage, shares=())
        if key not in targets:
            targets[key] = draw(uncached)
        return true_errors(uncached, made, targets[key], draw)
    except ValueError as error:  # the layers hold too few of the MACs, or nothing was measured at these times
        if own and not isinstance(error, BudgetOutOfReach):
            raise
        return []
