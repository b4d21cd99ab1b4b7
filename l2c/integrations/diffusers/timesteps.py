"""Maps the timestep of a forward to the row of a graph, and refuses timesteps that do not fit."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from l2c.graph.resampling import nearest
from l2c.integrations.diffusers.calls import (
    AT_ONCE,
    CallMark,
    Turn,
    call_of,
    called_elsewhere,
    caller_of,
    in_turns,
    mark_of,
)
from l2c.integrations.diffusers.denoisers import TIMES, is_time, parameters_of
from l2c.integrations.diffusers.fit import check_call
from l2c.integrations.diffusers.placing import EndOfCall
from l2c.integrations.diffusers.rows import Rows, tolerance
from l2c.integrations.diffusers.scheduler_solver import prediction_of

log = logging.getLogger(__name__)
UNCACHED = (
    "the pipeline set no timesteps in this call and called its model at none of the graph's (%s), so that the call "
    "ran uncached; let it set them (scheduler.set_timesteps)"
)
ANGLE = 1.571  # the largest that is a time: 90 degrees, as schedulers round it


def arguments_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a model's forward by their names, the noisy input first."""
    kind: Any = type(module)
    names = parameters_of(kind)
    return {**dict(zip(names, args, strict=False)), **{n: kwargs[n] for n in names if n in kwargs}, **kwargs}


def noisy_in(given: Mapping[str, Any]) -> str:
    """Return the name of the noisy input among arguments in their order.

    It is the first one, but where that holds whole numbers (ids of a text's tokens, Cosmos 3): then the first one of
    real numbers with axes beside those of a batch of tokens, or a list of such.
    """
    first, *others = given
    if not isinstance(given[first], Tensor) or given[first].is_floating_point():
        return first

    def holds(value: Any) -> bool:
        head = value[0] if isinstance(value, list) and value else value
        return isinstance(head, Tensor) and head.is_floating_point() and head.ndim >= 3

    return next((name for name in others if holds(given[name])), first)


def time_argument(given: Mapping[str, Any]) -> tuple[tuple[str, ...], Any] | None:
    """Return the timestep's name among arguments (two names for one inside a dictionary) and its value."""
    inner = ((name, value) for name, value in given.items() if isinstance(value, Mapping))
    places: Iterator[tuple[tuple[str, ...], Mapping[str, Any]]] = chain([((), given)], (((n,), v) for n, v in inner))
    for path, around in places:
        for name in (*(name for name in TIMES if name in around), *filter(is_time, around)):
            if isinstance(around[name], (Tensor, float, int)):
                return (*path, name), around[name]
    return None


def conditions_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward, the noisy input and the timestep aside."""
    given = arguments_of(module, args, kwargs)
    noisy = noisy_in(given)
    return {name: value for name, value in given.items() if name != noisy and not is_time(name)}


def timestep_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the timestep that a model is called with, the noisiest of several; the one host read of a forward.

    Raises:
        ValueError: if the model takes no timestep.

    """
    t = kwargs.get("timestep")
    if t is None:
        found = time_argument(arguments_of(module, args, kwargs))
        if found is None:
            kind: Any = type(module)
            known = ", ".join(parameters_of(kind))
            raise ValueError(
                f"{type(module).__name__} was called without a timestep, by which a cache graph finds its row; "
                f"looked for an argument named {', '.join(TIMES)} or ..._timestep among {known}"
            )
        t = found[1]
    if not isinstance(t, Tensor):
        return float(t)
    value = float(t if t.numel() == 1 else t.max())
    return RoundedTimestep(value, torch.finfo(t.dtype).eps) if t.dtype in (torch.float16, torch.bfloat16) else value


class RoundedTimestep(float):
    """A timestep that was rounded to 16 bits, and by how much: `eps` of its own size."""

    eps: float

    def __new__(cls, value: float, eps: float) -> RoundedTimestep:  # noqa: D102
        rounded = super().__new__(cls, value)
        rounded.eps = eps
        return rounded


class GraphSchedule(threading.local):
    """The timesteps of the call that runs in this thread, and the graph for them; other threads see their own.

    Args:
        rows: where the graph of a call comes from.
        pipe: returns the pipeline whose scheduler is followed outside of calls, None once it is gone; None without a
            pipeline: no scheduler is followed.
        seen: one member, the scheduler's timesteps as any thread saw them last; those of a call that is over, until
            the next one sets its own.
        prediction: what the scheduler of that pipeline took predictions for, see `prediction_of`.
        any_guidance: accept another guidance scale than the graph's from that pipeline.

    Attributes:
        graph: the graph in use.
        given_rows: the row of the given graph that each evaluation follows.

    """

    def __init__(
        self,
        rows: Rows,
        pipe: Callable[[], Any] | None,
        seen: list[Any],
        *,
        prediction: str | None = None,
        any_guidance: bool = False,
    ) -> None:
        self.graph = rows.first
        self.given_rows: Sequence[int] = range(self.graph.num_evaluations)
        self.rows = rows
        self.pipe = pipe
        self.prediction = prediction
        self.any_guidance = any_guidance
        self._scheduled: Any = None
        self._call: CallMark | None = None  # in which the trajectory that runs began
        self._over: CallMark | None = None  # the call that goes on after the last of the graph's evaluations
        self._seen = seen
        self._early = False  # whether all calls of the model so far came before the timesteps were set

    def exchange(self, other: dict[str, Any] | None) -> dict[str, Any]:
        """Take up the state of another call of this thread, None = of one that begins; return the state until now."""
        before = dict(vars(self))
        if other is None:
            told = {"prediction": self.prediction, "any_guidance": self.any_guidance}
            self.__init__(self.rows, self.pipe, self._seen, **told)  # type: ignore[misc]
        else:
            vars(self).update(other)
        return before

    def begins_anew(self, model: nn.Module, t: float) -> bool:
        """Return whether the pipeline that calls the model has set its timesteps since the last forward.

        Looks at them then. The pipeline may be another one than the graph was applied to, with the same model.

        Raises:
            ValueError: if there is no graph for the timesteps, or another thread is in a call of the pipeline.

        """
        pipe = None if self.pipe is None else caller_of(model, self.pipe())
        scheduler = getattr(pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        call = None if timesteps is None else call_of(pipe)
        own = call is not None and Turn.check(scheduler, call)
        if timesteps is None or timesteps is self._scheduled:
            return False
        if not own and called_elsewhere(pipe):
            raise ValueError(AT_ONCE.format(type(pipe).__name__))
        mark = None if call is None else mark_of(call)
        last = mark is self._over and self.graph.num_evaluations > 1 and self._at(t) == self.graph.num_evaluations - 1
        if mark is not None and (mark is self._call or last):  # in parts, or another view of the last evaluation
            self._scheduled = timesteps
            return False
        if not own:  # a scheduler that was put in after the graph was applied
            in_turns(scheduler)
            Turn.take(scheduler)
        EndOfCall.watch(pipe, anew=False)
        self._scheduled, self._call, self._seen[0], self._early = timesteps, mark, timesteps, False
        values, end = trajectory_of(pipe, t, self.rows.first.timesteps)
        self.graph, self.given_rows = self.rows.at(values, t, scheduler, end)
        own = pipe is self.pipe()  # type: ignore[misc]  # not None where a pipeline was found
        now = prediction_of(scheduler)
        if own and None not in (now, self.prediction) and now != self.prediction:
            raise ValueError(
                f"{type(scheduler).__name__} takes predictions for {now}, for {self.prediction} when the graph was "
                f"applied; give it prediction_type={self.prediction!r}, or call l2c.apply(pipe, graph) again"
            )
        check_call(self.graph, pipe, any_guidance=self.any_guidance and own)
        return True

    def before_first(self, model: nn.Module, t: float) -> bool:
        """Return whether a pipeline calls the model before it sets its timesteps, at none of the graph's."""
        if self.pipe is None or self._at(t) is not None:
            return False
        pipe = caller_of(model, self.pipe())
        timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
        call = call_of(pipe)
        mark = None if call is None else mark_of(call)
        self._early = mark is not None and mark is not self._call and timesteps is not None
        self._early = self._early and timesteps is self._seen[0] and not (self.rows.part and mark is self._over)
        return self._early

    def end(self, *, goes_on: bool = False) -> None:
        """Forget the pipeline's call after the end of its trajectory; the call itself may go on."""
        if self._early:
            log.warning(UNCACHED, _shown(self.graph.timesteps))
        if not goes_on:
            self._over = None
        elif self._call is not None:  # not at the last evaluation of a second branch
            self._over = self._call
        self._call, self._early = None, False

    def evaluation(self, t: float) -> int:
        """Return the evaluation that takes place at t.

        Raises:
            ValueError: if no evaluation takes place at t.

        """
        timesteps = self.graph.timesteps
        e = self._at(t)
        if e is None:
            raise ValueError(
                f"the model is called at t = {float(t):g}, but the graph's {len(timesteps)} evaluations lie at "
                f"{_shown(timesteps)}; use its scheduler and number of steps, {self.rows.or_else}"
            )
        self._early = False
        return e

    def _at(self, t: float) -> int | None:
        """Return the evaluation of the graph in use that takes place at t; None = there is none."""
        timesteps = self.graph.timesteps
        e = nearest(timesteps, t)
        return e if abs(timesteps[e] - t) <= tolerance(timesteps, t) else None


def _shown(timesteps: Sequence[float]) -> str:
    return ", ".join(f"{t:g}" for t in timesteps[:3]) + (f", ..., {timesteps[-1]:g}" if len(timesteps) > 3 else "")


def as_model_sees(timesteps: Any, t: float, scheduler: Any, like: Sequence[float] = ()) -> tuple[float, ...]:
    """Return a scheduler's timesteps in the units of the model.

    Some pipelines divide them by the training steps, some count from noise 0 to image 1, some begin one step later,
    and some give the noise levels sigma themselves, sigma / (1 + sigma), or that of an angle whose tangent is sigma.

    Args:
        timesteps: the scheduler's.
        t: the one that the model is called with.
        scheduler: the scheduler.
        like: timesteps of another trajectory of the model. Half-way t may fit in several units (0.5 is also the
            sigma / (1 + sigma) of the first step): those count in which t is the step that the scheduler is at, then
            those that `like` lies in.

    """
    values = tuple(float(value) for value in torch.as_tensor(timesteps).tolist())
    places = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
    at = next((int(place) for place in places if place is not None and place < len(values)), None)  # not at the end

    def misfit(unit: tuple[float, ...]) -> tuple[bool, float, bool, float, int]:
        unlike = len(like) > 1 and (unit[-1] > unit[0], max(unit) > 1) != (like[-1] > like[0], max(like) > 1)
        place = nearest(unit, t)
        off = round(max(0.0, abs(unit[place] - t) - getattr(t, "eps", 0.0) * abs(t)), 6)
        elsewhere = at is not None and abs(unit[at] - t) > tolerance(unit, t)
        apart = max((abs(unit[nearest(unit, other)] - other) for other in like), default=0.0)
        return unlike, off, elsewhere, round(apart, 6), place

    return min(_units_of(values, scheduler), key=misfit)


def _units_of(values: tuple[float, ...], scheduler: Any) -> list[tuple[float, ...]]:
    """Return a scheduler's timesteps in all units that models take, see `as_model_sees`."""
    training = float(getattr(scheduler.config, "num_train_timesteps", 1000))
    units = [values, tuple(v / training for v in values), tuple(1 - v / training for v in values)]
    units.append(tuple(v - 1 for v in values))
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(values) + 1:
        levels = tuple(float(sigma) for sigma in torch.as_tensor(sigmas).tolist()[:-1])
        units += [levels, tuple(sigma / (1 + sigma) for sigma in levels)]
    if min(values) >= 0 and max(values) <= ANGLE:
        units.append(tuple(math.sin(v) / (math.sin(v) + math.cos(v)) for v in values))
    return units


def trajectory_of(pipe: Any, t: float, like: Sequence[float] = ()) -> tuple[tuple[float, ...], int]:
    """Return all timesteps of a pipeline's scheduler in the units of its model, and how many are left when it ends.

    A call may end before the last one, where another pipeline goes on (`denoising_end`); pipelines know how many they
    make.

    Args:
        pipe: the pipeline, in its call.
        t: the first one that its model is called with.
        like: see `as_model_sees`.

    """
    timesteps = as_model_sees(pipe.scheduler.timesteps, t, pipe.scheduler, like)
    made = getattr(pipe, "_num_timesteps", None)
    end = len(timesteps) if not isinstance(made, int) or made < 1 else nearest(timesteps, t) + made
    return timesteps, min(end, len(timesteps))
