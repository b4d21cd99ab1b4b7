"""Arguments of a pipeline's model other than noisy input and timestep, for each prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.backbones.digest import weights_digest
from l2c.io.digests import digest_of_text
from l2c.io.names import quoted
from l2c.io.tensors import check_nested, plain_members

SHARED, LISTED = "shared", "listed"  # places of a condition that has no axis of prompts
ABSENT = "absent"
ALONE = "alone"  # of all conditions of a pipeline that takes one prompt a call
PLAIN = (Tensor, str, bool, int, float)  # what can be compared


@dataclass(frozen=True)
class PerPrompt:
    """A condition with a part for each prompt, kept apart: prompts may differ in length.

    Attributes:
        parts: one for each prompt, as the model is given it for a batch of this prompt alone; None = it is not given
            it (a mask of texts that are padded).
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

        All are alike of lists, whose members may differ in shape.
        """
        if self.axis == SHARED:
            return tuple(next(i for i, other in enumerate(self.parts) if same(part, other)) for part in self.parts)
        of_list = None if isinstance(self.axis, int) else LISTED
        return tuple(ABSENT if part is None else of_list or tuple(part.shape) for part in self.parts)


def same(ours: Any, theirs: Any) -> bool:
    """Return whether two conditions, or members of conditions, are equal; tensors in form and place too.

    Objects of other kinds (GLM-Image's keys and values of pictures) are compared by what they hold.
    """
    if ours is theirs:
        return True
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if type(ours) is type(theirs) and not isinstance(ours, PLAIN):
        return same(getattr(ours, "__dict__", {}), getattr(theirs, "__dict__", {}))
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
        return alike and torch.equal(ours, theirs)
    return not isinstance(ours, Tensor) and not isinstance(theirs, Tensor) and ours == theirs


def check_conditions(given: Mapping[str, Any]) -> None:
    """Refuse arguments of a model that are nested too deep to be compared and told by their digest.

    Raises:
        ValueError: if they are, or hold themselves; the message names the first of them.

    """
    for name, value in given.items():
        check_nested(f"the pipeline gives its model {quoted(name)}, whose", value, _members)


def _members(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return what `same` and `digest_of` look at in a condition."""
    if isinstance(value, (*PLAIN, np.ndarray, Mapping, list, tuple)):
        return plain_members(value)
    return getattr(value, "__dict__", {}).items()


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


def one_for_all(places: Any, others: Any) -> bool:
    """Return whether some condition is shared by all rows where by other places each row has its own."""
    if isinstance(places, Mapping):
        return any(one_for_all(place, others[key]) for key, place in places.items())
    if isinstance(places, (list, tuple)):
        return any(map(one_for_all, places, others))
    return bool(places == SHARED and isinstance(others, int))


def tabled(values: Sequence[Any], places: Any) -> Any:
    """Return the conditions of single prompts as one table; what all prompts share is in it once.

    Args:
        values: the same condition of each prompt.
        places: see `places_of`; or `ALONE`.

    """
    head = values[0]
    if isinstance(places, Mapping) and any(value is None for value in values):
        places = ALONE
    if isinstance(places, Mapping):
        given = {key: [value.get(key) for value in values] for key in dict.fromkeys(chain(*values))}
        return {key: tabled(column, places.get(key, _usual_place(column))) for key, column in given.items()}
    if isinstance(places, (list, tuple)):
        columns = zip(zip(*values, strict=True), places, strict=True)
        return type(places)(tabled(parts, place) for parts, place in columns)
    if places == SHARED and all(same(head, value) for value in values):
        return head
    return PerPrompt(tuple(values), None if places == LISTED else places)


def _usual_place(column: Sequence[Any]) -> Any:
    """Return where the axis of prompts is taken to lie in a condition that the first prompt has not."""
    given = next((value for value in column if value is not None), None)
    return 0 if isinstance(given, Tensor) and given.ndim and len(given) == 1 else ALONE


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
    if ABSENT in table.shapes and table.parts[int(y[0])] is None:
        return None
    if not isinstance(table.axis, int):
        members = [member for prompt in y.tolist() for member in table.parts[prompt]]
        return [member.to(y.device) if isinstance(member, Tensor) else member for member in members]
    if table.alike is not None:  # no value of y is read
        return table.alike.to(y.device)[y].movedim(0, table.axis).flatten(table.axis, table.axis + 1)
    return torch.cat([table.parts[prompt] for prompt in y.tolist()], dim=table.axis).to(y.device)


def places_in(value: Any, count: int) -> Any:
    """Return where the axis of rows lies in each condition of a call of `count` rows, taken to be the first one."""
    if isinstance(value, Mapping):
        return {key: places_in(member, count) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return LISTED if len(value) == count else type(value)(places_in(member, count) for member in value)
    return 0 if isinstance(value, Tensor) and value.ndim and len(value) == count else SHARED


def in_parts(value: Any, place: Any, count: int) -> list[Any]:
    """Return the parts of a condition of `count` times as many prompts, in their order."""
    if isinstance(place, Mapping):
        parts = {key: in_parts(value[key], place[key], count) for key in place}
        return [{key: parts[key][i] for key in parts} for i in range(count)]
    if isinstance(place, (list, tuple)):
        members = [in_parts(part, inner, count) for part, inner in zip(value, place, strict=True)]
        return [type(place)(member[i] for member in members) for i in range(count)]
    if place == SHARED:
        return [value] * count
    if place == LISTED:
        size = len(value) // count
        return [value[i * size : (i + 1) * size] for i in range(count)]
    return list(value.chunk(count, dim=place))


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
    """Return a digest of conditions that `check_conditions` has seen."""
    if isinstance(table, Mapping):
        return digest_of_text(str({key: digest_of(value) for key, value in table.items()}))
    if isinstance(table, PerPrompt):
        table = table.parts
    if isinstance(table, (list, tuple)):
        return digest_of_text(str([digest_of(member) for member in table]))
    if isinstance(table, (Tensor, np.ndarray)):
        return weights_digest({"": torch.as_tensor(table)})
    return f"{type(table).__name__} {digest_of(vars(table))}" if hasattr(table, "__dict__") else str(table)


def _per_prompt(table: Any) -> list[PerPrompt]:
    """Return the conditions of a table that have a part for each prompt."""
    if isinstance(table, Mapping):
        table = tuple(table.values())
    if isinstance(table, (list, tuple)):
        return [condition for member in table for condition in _per_prompt(member)]
    return [table] if isinstance(table, PerPrompt) else []
