"""True errors beside those that a calibration predicts, by which it corrects the errors that it expects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone
from l2c.calibration.calibration_file import ERRORS
from l2c.calibration.measurements import Measurements
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import ERROR, WORTH
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.image_error import squared_errors
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import cached_like

CORRECTED_AT = (0.75, 0.64, 0.5, 0.4, 0.32, 0.25)
CARRIED_AT = (0.64, 0.4, 0.25)  # at other numbers of evaluations, and for the whole output
LEAST_CORRECTED = 4  # evaluations


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
        images = draw(cached_like(uncached, graph))
        true = float(squared_errors(images, target).mean())
        predicted = float(graph.measured[ERROR])
        share = float(graph.measured[WORTH]) / num_evaluations
        if all(ERRORS[0] <= error <= ERRORS[1] for error in (true, predicted)):  # none is 0
            found.append({"num_evaluations": num_evaluations, "share": share, "predicted": predicted, "true": true})
    return found
