"""Settings of a calibration; commands and Python have the same ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from l2c.graph.given import each, table
from l2c.io.json_fields import known_fields
from l2c.io.names import shown
from l2c.io.numbers import AT_ONCE, LARGEST_SEED, whole_number
from l2c.io.settings import Items, Settings, Text, is_list, ruled, text, whole

CHANGES, RESPONSES = "changes", "responses"
GRADIENT, FORWARD = "gradient", "forward"
MOST_BETWEEN = 8  # outputs between two evaluations
JOINED = "joined"  # settings of a calibration of several parts: the trajectories of each
MOST_PARTS = 4096
# What settings say of tensors whose names end so: the axis, and whose product its size is.
AGES, DIRECTIONS = (
    ("ages", 2, ("responses.max_age",)),
    ("directions", 3, ("num_trajectories", "responses.num_probes")),
)
SIZES: Mapping[str, Sequence[tuple[str, int, Sequence[str]]]] = {
    "change": [("ages", 0, ("changes.max_age",))],
    "responses": [AGES, DIRECTIONS],
    "responses_ahead": [DIRECTIONS],
    "responses_between": [("ages between evaluations", 2, ("responses.max_age", "responses.between")), DIRECTIONS],
    "responses_ahead_between": [DIRECTIONS],
}
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


GROUPS: Mapping[str, type[Settings]] = {CHANGES: Changes, RESPONSES: Responses}


class Noises(NamedTuple):
    """Trajectories of a seed: their noises, directions and labels."""

    seed: int
    first_trajectory: int
    num_trajectories: int

    @property
    def end(self) -> int:
        """The first number that is free again."""
        return self.first_trajectory + self.num_trajectories


def noises_of(settings: Mapping[str, Any]) -> list[Noises]:
    """Return the trajectories that a calibration was measured on.

    Args:
        settings: those of a calibration.

    Raises:
        ValueError: if they do not say.

    """
    parts = list(each(f"settings.{JOINED}", settings[JOINED])) if JOINED in settings else [settings]
    if not 0 < len(parts) <= MOST_PARTS:
        raise ValueError(f"settings.{JOINED} must have 1 to {MOST_PARTS} parts, got {len(parts)}; join them again")
    found = []
    for part in parts:
        own = table(f"a part of settings.{JOINED}", part)
        if part is not settings:
            known_fields(own, Noises._fields, f"settings.{JOINED}")
        missing = [name for name in ("seed", "num_trajectories") if name not in own]
        if missing:
            raise ValueError(
                "the settings of a calibration must say which trajectories it was measured on, but there is no "
                f"{' and no '.join(missing)}; run l2c calibrate again"
            )
        count = whole_number("settings.num_trajectories", own["num_trajectories"], low=1, high=AT_ONCE)
        first = whole_number("settings.first_trajectory", own.get("first_trajectory", 0), low=0, high=AT_ONCE)
        found.append(Noises(whole_number("settings.seed", own["seed"], low=0, high=LARGEST_SEED), first, count))
    return found


def joint(noises: Sequence[Noises]) -> dict[str, int]:
    """Return what the settings of a calibration of several parts say: where the first begins, how many there are."""
    return {**noises[0]._asdict(), "num_trajectories": sum(one.num_trajectories for one in noises)}


def check_settings(settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse settings of a measurement that none can have, or that contradict each other or the tensors' sizes.

    Settings other than the known ones may be anything, and those that are left out say nothing.

    Args:
        settings: those of a calibration.
        shapes: of its tensors, by name; none where responses were carried to other ages.

    Raises:
        ValueError: if one is of another type or out of range, or says another size.

    """
    own = table("the settings of a calibration", settings)
    known = CalibrationSettings.__dataclass_fields__
    try:
        CalibrationSettings.of({name: value for name, value in own.items() if name in known})
        groups = {name: table(name, own.get(name, {})) for name in GROUPS}
        for name, group in GROUPS.items():
            group.of(groups[name])
    except ValueError as error:
        raise ValueError(f"settings: {shown(error, 500)}") from error
    said = {**own, **{f"{group}.{name}": value for group in groups for name, value in groups[group].items()}}
    if JOINED in own:
        for name, value in joint(noises_of(own)).items():
            if own.get(name, value) != value:
                raise ValueError(
                    f"settings.{name} is {own[name]}, but the parts in settings.{JOINED} say {value}; join them again"
                )
            said[name] = value
    for tensor, shape in shapes.items():
        _check_measured(tensor, own.get("measure"))
        _check_size(tensor, shape, said)


def _check_size(tensor: str, shape: Sequence[int], said: Mapping[str, Any]) -> None:
    """Refuse settings whose product is not the size of a tensor, or no part of it where one of them is left out."""
    for what, axis, names in SIZES["change" if tensor.endswith("change") else tensor.removeprefix("output_")]:
        given = {name: said[name] for name in names if said.get(name) is not None}
        size = math.prod(given.values())
        if shape[axis] != size and (len(given) == len(names) or not size or shape[axis] % size):
            told = " x ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(
                f"settings: {told} does not fit the {shape[axis]} {what} of {tensor}; run l2c calibrate again"
            )


def _check_measured(tensor: str, measure: Any) -> None:
    """Refuse a tensor of a kind that the settings do not name among those measured."""
    kind = CHANGES if tensor.endswith("change") else RESPONSES
    if measure is not None and kind not in (measure if is_list(measure) else [measure]):
        raise ValueError(f"settings: measure names no {kind}, but there is {tensor}; run l2c calibrate again")
