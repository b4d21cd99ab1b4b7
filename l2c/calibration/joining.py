"""Calibrations of one sampler, measured on different trajectories, joined to the one of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.calibration import calibration_file as file
from l2c.calibration.measurements import Kind, Measurements
from l2c.calibration.settings import JOINED, Noises, joint, noises_of
from l2c.graph.given import each
from l2c.io.names import listed, shown
from l2c.io.settings import is_list


def free_noises(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return a seed and the number of a trajectory from which on a calibration was measured on none of it."""
    if not (JOINED in settings or {"seed", "num_trajectories"} <= set(settings)):  # made by hand
        return int(settings.get("seed", 0)), int(settings.get("num_trajectories", 0))
    parts = noises_of(settings)
    return parts[0].seed, max(one.end for one in parts if one.seed == parts[0].seed)


def joined(kind: type[Kind], given: Iterable[Kind | str | Path]) -> Kind:
    """Return the calibration of all trajectories that some calibrations of one sampler were measured on.

    Changes are averaged by numbers of trajectories; responses stand side by side, so that expected errors and their
    spread are those of all trajectories. Parts of one seed whose numbers follow on each other give what one process
    would have measured. Corrections of expected errors are averaged; those of small parts are too large, because
    graphs of few directions err more than they expect: of four parts of 16 trajectories up to 3 times.

    Args:
        kind: class of the calibrations.
        given: calibrations, or paths of their files, in any order; at least one.

    Raises:
        ValueError: if two differ in more than their trajectories, or were measured on the same one.

    """
    files = list(each("parts", given))
    parts = [kind.load(part) if isinstance(part, (str, Path)) else part for part in files]
    if not parts or not all(isinstance(part, kind) for part in parts):
        raise ValueError(f"parts must be calibrations or paths of their files, at least one, got {listed(parts)}")
    called = [shown(f, 300) if isinstance(f, (str, Path)) else f"part {i}" for i, f in enumerate(files, start=1)]
    for part, name in zip(parts[1:], called[1:], strict=True):
        _check_alike(parts[0], part, (called[0], name))
    noises = [noises_of(part.settings) for part in parts]
    order = sorted(range(len(parts)), key=lambda i: noises[i])
    parts, noises = [parts[i] for i in order], [noises[i] for i in order]
    first = parts[0]
    counts = [sum(one.num_trajectories for one in own) for own in noises]
    shares = [count / sum(counts) for count in counts]
    settings = {name: value for name, value in first.settings.items() if name != JOINED}
    pooled: dict[str, Any] = {
        name: _pooled([getattr(part, name) for part in parts], counts) for name in file.CORRECTIONS
    }
    return replace(
        first,
        tensors={name: _joined(name, [part.tensors[name] for part in parts], shares) for name in first.tensors},
        settings={**settings, **_of_noises(_merged([one for own in noises for one in own]))},
        **pooled,
    )


def _of_noises(noises: Sequence[Noises]) -> dict[str, Any]:
    first, *others = noises
    if not others:
        return first._asdict()
    return {**joint(noises), JOINED: [one._asdict() for one in noises]}


def _merged(noises: Sequence[Noises]) -> list[Noises]:
    """Return trajectories in order, those of a seed that follow on each other as one; refuse any that come twice."""
    found: list[Noises] = []
    for one in sorted(noises):
        before = found[-1] if found and found[-1].seed == one.seed else None
        if before is not None and before.end > one.first_trajectory:
            raise ValueError(
                f"trajectory {one.first_trajectory} of seed {one.seed} is in two of the calibrations; measure each "
                "with another seed or first_trajectory, and give each once"
            )
        if before is not None and before.end == one.first_trajectory:
            found[-1] = before._replace(num_trajectories=before.num_trajectories + one.num_trajectories)
        else:
            found.append(one)
    return found


def _check_alike(first: Measurements, other: Measurements, called: tuple[str, str]) -> None:
    """Refuse a calibration that was measured of something else, or in another way; `called`: what the two are."""
    own = {"batch_size", JOINED, *Noises._fields}
    pairs = [
        *(
            (name.replace("_", " "), value, other.binding.fields[name])
            for name, value in first.binding.fields.items()
        ),
        *(
            (name, getattr(first, name), getattr(other, name))
            for name in ("grid", "schedule", "cost", "carried_from")
        ),
        *(
            (f"settings of {name}", first.settings.get(name), other.settings.get(name))
            for name in sorted({*first.settings, *other.settings} - own)
        ),
        ("tensors", _shapes(first.tensors), _shapes(other.tensors)),
    ]
    for what, *both in pairs:
        value, another = map(_in_lists, both)
        if value != another:
            value, another = _differing(value, another)
            raise ValueError(
                f"calibrations are joined that differ in their trajectories alone, but the {what} are "
                f"{shown(value, 80)} in {called[0]} and {shown(another, 80)} in {called[1]}; measure all with the "
                "same model, sampler and settings"
            )


def _in_lists(value: Any) -> Any:
    """Return a value with lists for tuples and other sequences, as a file holds them."""
    if isinstance(value, Mapping):
        return {name: _in_lists(member) for name, member in value.items()}
    return [_in_lists(member) for member in value] if is_list(value) else value


def _differing(value: Any, another: Any) -> tuple[Any, Any]:
    """Return what differs of two tables, or the first items that differ of two lists of one length."""
    if isinstance(value, Mapping) and isinstance(another, Mapping):
        same = {name for name in value if name in another and value[name] == another[name]}
        value, another = ({name: of[name] for name in of if name not in same} for of in (value, another))
        return value, another
    if is_list(value) and is_list(another) and len(value) == len(another):
        pairs = zip(value, another, strict=True)
        return next((pair for pair in pairs if pair[0] != pair[1]), (value, another))
    return value, another


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name, of responses without the directions."""
    return {name: tuple(tensors[name].shape[:3]) for name in sorted(tensors)}


def _joined(name: str, tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the mean of changes; the responses along all directions, whose squares add up to a mean."""
    weighted = [
        tensor * (share if name.endswith("change") else share**0.5)
        for tensor, share in zip(tensors, shares, strict=True)
    ]
    return torch.stack(weighted).sum(dim=0) if name.endswith("change") else torch.cat(weighted, dim=3)


def _pooled(
    corrections: Sequence[Sequence[Mapping[str, float]]], counts: Sequence[int]
) -> tuple[Mapping[str, float], ...]:
    """Return the means of corrections at the same number of evaluations and place from the largest budget down."""
    known = [(own, count) for own, count in zip(corrections, counts, strict=True) if own]
    found: list[Mapping[str, float]] = []
    numbers = list(dict.fromkeys(one["num_evaluations"] for own, _ in known for one in own))
    for number in numbers:
        at_number = [([one for one in own if one["num_evaluations"] == number], count) for own, count in known]
        at_number = [(own, count) for own, count in at_number if own]
        total = sum(count for _, count in at_number)
        for same in zip(*(own for own, _ in at_number), strict=False):  # some may reach smaller budgets
            weights = [count / total for _, count in at_number]
            means = {
                name: sum(weight * one[name] for weight, one in zip(weights, same, strict=True))
                for name in file.CORRECTION[1:]
            }
            found.append({"num_evaluations": number, **means})
    return tuple(found)
