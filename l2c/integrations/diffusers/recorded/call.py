"""A call of a pipeline's model as a hook sees it, and those of modules that the pipeline runs before it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from l2c.integrations.diffusers.denoisers import needed_by
from l2c.integrations.diffusers.recorded.conditions import check_conditions, in_parts
from l2c.integrations.diffusers.recorded.feeders import Path, filled, handed_on, looked_at, member_of
from l2c.integrations.diffusers.recorded.regions import Region, TokenTimes, blank, narrowed, placed
from l2c.integrations.diffusers.timesteps import arguments_of, noisy_in, time_argument, timestep_of

BESIDE = "beside the noisy input"


@dataclass(frozen=True)
class RecordedCall:
    """A call of a pipeline's model.

    Attributes:
        x: the noisy input (N, ...).
        t: the timestep.
        conditions: the other arguments.
        noisy: name of the argument that takes x.
        time: place of the timestep among the arguments, see `time_argument`.
        listed: whether x is given as a list of N tensors.
        times: timesteps of the tokens or frames of a row, where each has one; None = a row has one.
        also: names of further arguments that are given the timestep.
        region: the part of the model's input that is x, see `regions`; what lies beside it (a picture's latents, a
            mask, frames that stay as they are) is the condition `BESIDE`.
        before: calls of other modules before it that take a time, each with the module and its output.
        feeders: those of them that make some of the conditions from x and t, which are None then, see `fed`.
        model: the model that is called; None = not known.

    """

    x: Tensor
    t: float
    conditions: dict[str, Any]
    noisy: str
    time: tuple[str, ...]
    listed: bool
    times: TokenTimes | None = None
    also: tuple[str, ...] = ()
    region: Region = ()
    before: tuple[tuple[nn.Module, RecordedCall, Any], ...] = ()
    feeders: tuple[Feeder, ...] = ()
    model: nn.Module | None = None

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RecordedCall:
        """Return a call as a hook of the model sees it.

        Raises:
            ValueError: if there is no timestep.

        """
        t = timestep_of(module, args, kwargs)
        check_conditions(given := arguments_of(module, args, kwargs))
        noisy = noisy_in(given)
        x = given.pop(noisy)
        found = time_argument(given)
        assert found is not None, "timestep_of refuses this"
        given = _without(given, found[0])
        given.pop("return_dict", None)
        kind: Any = type(module)
        kept = {key: value for key, value in given.items() if value is not None or key in needed_by(kind)}
        conditions = filled(kept, {})  # models pop lists
        also = tuple(name for name, value in conditions.items() if _is_also(name, value, found[1]))
        conditions = {name: value for name, value in conditions.items() if name not in also}
        listed = isinstance(x, list)
        x = torch.stack(x) if listed else x
        times = TokenTimes.of(found[1], t, len(x))
        return cls(x, t, conditions, noisy, found[0], listed, times, also, model=module)

    def split(self, region: Region) -> RecordedCall:
        """Return the call whose noisy input is a region of this one's, what lies beside it a condition."""
        if not region:
            return self
        conditions = {**self.conditions, BESIDE: blank(self.x, region)}
        return replace(self, x=narrowed(self.x, region), conditions=conditions, region=region)

    def apart_from(self, other: RecordedCall) -> bool:
        """Return whether this call is of another model than another call, or its input is laid out in another way."""
        return self.model is not other.model or self.x.shape[1:] != other.x.shape[1:] or self.region != other.region

    def in_parts(self, places: Any, count: int) -> list[RecordedCall]:
        """Return the `count` calls of which this one is the batch; `places` are those of its conditions."""
        parts = zip(self.x.chunk(count), in_parts(self.conditions, places, count), strict=True)
        return [replace(self, x=x, conditions=conditions) for x, conditions in parts]

    def fed(self) -> RecordedCall:
        """Return the call with the feeders' own conditions in the place of what they made from the same x and t."""
        conditions = self.conditions
        feeders: list[Feeder] = []
        for module, own, output in self.before:
            alike = own.t == self.t and own.x.shape == self.x.shape and torch.equal(own.x, self.x)
            places = handed_on(output, conditions) if alike else {}
            if places:
                name = f"of {type(module).__name__} {len(feeders)}"
                feeders.append(Feeder(name, module, own, places))
                conditions = {**filled(conditions, dict.fromkeys(places)), name: own.conditions}
        return replace(self, conditions=conditions, feeders=tuple(feeders), before=())

    def arguments(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's arguments for other inputs."""
        given = dict(conditions)
        for feeder in self.feeders:
            output = feeder.module(**feeder.call.arguments(x, t, given.pop(feeder.name)))
            given = filled(given, {path: member_of(output, inside) for path, inside in feeder.places.items()})
        if self.region:
            x = placed(given.pop(BESIDE), x, self.region)
        t = t.expand(len(x)) if t.numel() == 1 else t  # some models take a timestep for each row alone
        t = t if self.times is None else self.times.at(t)
        given = {self.noisy: list(x.unbind()) if self.listed else x, **given}
        given |= dict.fromkeys(self.also, t)
        *inside, name = self.time
        if not inside:
            return {**given, name: t}
        return {**given, inside[0]: {**given.get(inside[0], {}), name: t}}


@dataclass(frozen=True)
class Feeder:
    """A module that makes conditions of the model from its noisy input and timestep (a ControlNet).

    Attributes:
        name: of its own conditions among the model's.
        module: the module.
        call: its call.
        places: where in the model's conditions which tensor of its output goes.

    """

    name: str
    module: nn.Module
    call: RecordedCall
    places: Mapping[Path, Path]


@contextlib.contextmanager
def timed_calls(pipe: Any, models: Collection[nn.Module]) -> Iterator[list[tuple[nn.Module, RecordedCall, Any]]]:
    """Yield a list of the calls that modules of a pipeline beside some get in a `with` block, if they take a time."""
    calls: list[tuple[nn.Module, RecordedCall, Any]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if time_argument(arguments_of(module, args, kwargs)) is None:
            return
        own = RecordedCall.of(module, args, kwargs)
        form = {name: kwargs[name] for name in ("return_dict",) if name in kwargs}  # of the output
        calls.append((module, replace(own, conditions={**own.conditions, **form}), output))

    with looked_at(pipe, models, look):
        yield calls


def _is_also(name: str, value: Any, t: Any) -> bool:
    """Return whether an argument is the timestep once more: the same tensor, or an equal one of such a name."""
    if not isinstance(value, Tensor) or not isinstance(t, Tensor):
        return False
    return value is t or ("timestep" in name and value.shape == t.shape and torch.equal(value, t))


def _without(given: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    name, *inside = path
    rest = {key: value for key, value in given.items() if key != name}
    return {**rest, name: _without(given[name], tuple(inside))} if inside else rest
