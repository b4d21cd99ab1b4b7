"""Arguments of a pipeline's model other than noisy input and timestep, for each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.digest import weights_digest

SHARED, LISTED = "shared", "listed"  # places of a condition that has no axis of prompts
ALONE = "alone"  # of all conditions of a pipeline that takes one prompt a call
PLAIN = (Tensor, str, bool, int, float)  # what can be compared


@dataclass(frozen=True)
class PerPrompt:
    """A condition with a part for each prompt, kept apart: prompts may differ in length.

    Attributes:
        parts: one for each prompt, as the model is given it for a batch of this prompt alone.
        axis: axis of prompts, along which the parts of a batch are joined; None = each part is a list, and so is
            that of a batch; `SHARED` = a batch has one part, and prompts with another one are not in it (positions
            of tokens, whose number differs); `ALONE` = there are no batches.

    """

    parts: tuple[Any, ...]
    axis: int | str | None = 0

    @cached_property
    def alike(self) -> Tensor | None:
        """All parts as one tensor (P, ...); None where they differ in shape or are lists."""
        return torch.stack(self.parts) if isinstance(self.axis, int) and len(set(self.shapes)) == 1 else None

    @cached_property
    def shapes(self) -> tuple[Any, ...]:
        """What prompts of one batch have in common: the shape of each part, or of `SHARED` ones the part itself.

        All None for lists, whose members may differ in shape.
        """
        if self.axis == SHARED:
            return tuple(next(i for i, other in enumerate(self.parts) if same(part, other)) for part in self.parts)
        return tuple(tuple(part.shape) if isinstance(self.axis, int) else None for part in self.parts)


def same(ours: Any, theirs: Any) -> bool:
    """Return whether two conditions, or members of conditions, are equal; tensors in form and place too."""
    if ours is theirs:
        return True
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
        return alike and torch.equal(ours, theirs)
    return not isinstance(ours, Tensor) and not isinstance(theirs, Tensor) and ours == theirs


def places_of(one: Any, two: Any) -> Any:
    """Return where the axis of prompts lies in each condition.

    Args:
        one: a condition of a call for one prompt, or a mapping or tuple of some.
        two: the same of a call for this prompt twice.

    """
    if isinstance(one, Mapping):
        return {key: places_of(value, two[key]) for key, value in one.items()}
    if isinstance(one, (list, tuple)):
        if len(two) == 2 * len(one):
            return LISTED
        return type(one)(places_of(a, b) for a, b in zip(one, two, strict=True))
    if not isinstance(one, Tensor) or one.shape == two.shape:
        return SHARED
    return next(axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if b == 2 * a)


def tabled(values: Sequence[Any], places: Any) -> Any:
    """Return the conditions of single prompts as one table; what all prompts share is in it once.

    Args:
        values: the same condition of each prompt.
        places: see `places_of`; or `ALONE`.

    """
    head = values[0]
    if isinstance(places, Mapping):
        return {key: tabled([value[key] for value in values], places[key]) for key in head}
    if isinstance(places, (list, tuple)):
        columns = zip(zip(*values, strict=True), places, strict=True)
        return type(places)(tabled(parts, place) for parts, place in columns)
    if places == SHARED and (not isinstance(head, PLAIN) or all(same(head, value) for value in values)):
        return head
    return PerPrompt(tuple(values), None if places == LISTED else places)


def rows_of(table: Any, y: Tensor) -> Any:
    """Return the conditions of a batch of prompts y (N,), which must be alike in length; see `groups_of`."""
    if isinstance(table, Mapping):
        return {key: rows_of(value, y) for key, value in table.items()}
    if isinstance(table, (list, tuple)):
        return type(table)(rows_of(value, y) for value in table)
    if not isinstance(table, PerPrompt):
        return table.to(y.device) if isinstance(table, Tensor) else table
    if table.axis == ALONE:
        (prompt,) = y.tolist()
        return table.parts[prompt]
    if table.axis == SHARED:
        part = table.parts[int(y[0])]
        return part.to(y.device) if isinstance(part, Tensor) else part
    if not isinstance(table.axis, int):
        members = [member for prompt in y.tolist() for member in table.parts[prompt]]
        return [member.to(y.device) if isinstance(member, Tensor) else member for member in members]
    if table.alike is not None:  # no value of y is read
        return table.alike.to(y.device)[y].movedim(0, table.axis).flatten(table.axis, table.axis + 1)
    return torch.cat([table.parts[prompt] for prompt in y.tolist()], dim=table.axis).to(y.device)


def halves(value: Any, place: Any) -> tuple[Any, Any]:
    """Return the first and the second half of a condition of twice as many prompts."""
    if isinstance(place, Mapping):
        both = {key: halves(value[key], place[key]) for key in place}
        return {key: pair[0] for key, pair in both.items()}, {key: pair[1] for key, pair in both.items()}
    if isinstance(place, (list, tuple)):
        pairs = [halves(part, inner) for part, inner in zip(value, place, strict=True)]
        return type(place)(pair[0] for pair in pairs), type(place)(pair[1] for pair in pairs)
    if place == SHARED:
        return value, value
    if place == LISTED:
        return value[: len(value) // 2], value[len(value) // 2 :]
    first, second = value.chunk(2, dim=place)
    return first, second


def groups_of(table: Any, prompts: Sequence[int]) -> dict[Any, list[int]]:
    """Return the places in a batch of prompts whose conditions are alike in shape, by what they have in common."""
    groups: dict[Any, list[int]] = {}
    for place, prompt in enumerate(prompts):
        shapes = tuple(
            (prompt, place) if condition.axis == ALONE else condition.shapes[prompt]
            for condition in _per_prompt(table)
        )
        groups.setdefault(shapes, []).append(place)
    return groups


def differ_in_length(table: Any) -> bool:
    """Return whether some condition has another shape for some prompt, or there are no batches."""
    return any(condition.axis == ALONE or len(set(condition.shapes)) > 1 for condition in _per_prompt(table))


def digest_of(table: Any) -> str:
    """Return a digest of conditions."""
    if isinstance(table, Mapping):
        return str({key: digest_of(value) for key, value in table.items()})
    if isinstance(table, PerPrompt):
        table = table.parts
    if isinstance(table, (list, tuple)):
        return str([digest_of(member) for member in table])
    return weights_digest({"": table}) if isinstance(table, Tensor) else str(table)


def _per_prompt(table: Any) -> list[PerPrompt]:
    """Return the conditions of a table that have a part for each prompt."""
    if isinstance(table, Mapping):
        table = tuple(table.values())
    if isinstance(table, (list, tuple)):
        return [condition for member in table for condition in _per_prompt(member)]
    return [table] if isinstance(table, PerPrompt) else []
