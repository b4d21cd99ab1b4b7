"""Settings of a calibration; commands and Python have the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2c.io.numbers import AT_ONCE, LARGEST_SEED
from l2c.io.settings import Items, Settings, Text, ruled, text, whole

CHANGES, RESPONSES = "changes", "responses"
GRADIENT, FORWARD = "gradient", "forward"
MOST_BETWEEN = 8  # outputs between two evaluations
WHAT = Items(item=Text(choices=(CHANGES, RESPONSES)), single=True)


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """What is measured, and on which trajectories; see `measuring.measure`.

    Attributes:
        measure: `changes` and/or `responses`.
        num_trajectories: number of trajectories.
        batch_size: trajectories at a time.
        seed: seed of noises and directions.
        first_trajectory: number of the first one among those of the seed, for parts of one calibration, see
            `Calibration.joined`.
        true_errors: trajectories that correct the expected errors of graphs; 0 = they are not known.

    """

    measure: Any = ruled(WHAT, [CHANGES])
    num_trajectories: int = whole(64, at_least=1, at_most=AT_ONCE)
    batch_size: int = whole(8, at_least=1, at_most=AT_ONCE)
    seed: int = whole(7, at_least=0, at_most=LARGEST_SEED)
    first_trajectory: int = whole(0, at_least=0, at_most=AT_ONCE)
    true_errors: int = whole(64, at_least=0, at_most=AT_ONCE)


@dataclass(frozen=True)
class Changes(Settings, group=CHANGES):
    """Settings for measuring changes; see `changes.measure_changes`."""

    max_age: int = whole(3, at_least=1, at_most=1000)


@dataclass(frozen=True)
class Responses(Settings, group=RESPONSES):
    """Settings for measuring responses.

    Attributes:
        method: `gradient`, see `responses.measure_both_ways`, or `forward`, see `forward_responses.measure_forward`.
        num_probes: backward passes per batch; with `forward` directions kept per trajectory.
        max_age: the oldest output considered, in evaluations; None = `grid.oldest_age` of the solver.
        between: with `gradient`, whole outputs that are taken between two evaluations, by forward passes alone; from
            them responses are carried to other times. None where a pipeline's scheduler does not tell
            its states there.
        group: with `forward` neighbouring layers that are measured together.

    """

    method: str = text(GRADIENT, choices=(GRADIENT, FORWARD))
    num_probes: int = whole(8, at_least=1, at_most=1000)
    max_age: int | None = whole(None, at_least=1, at_most=1000, optional=True, example=1)
    between: int = whole(3, at_least=0, at_most=MOST_BETWEEN)
    group: int = whole(1, at_least=1, at_most=1000)

    def check_together(self) -> None:
        """Refuse groups of layers where every layer is measured."""
        if self.method == GRADIENT and self.group != 1:
            raise ValueError("responses.group is for responses.method=forward; the gradient way measures every layer")
