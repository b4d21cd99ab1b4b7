"""From the timestep of a forward to the row of a graph, and what is refused on the way."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.resampling import nearest_rows, resampled
from l2c.integrations.diffusers.fit import TOLERANCE, check_call, check_scheduler, check_timesteps

log = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def _position_of(kind: Any, name: str) -> int | None:
    """Return the place of a parameter among a class's positional ones."""
    parameters = list(inspect.signature(kind.forward).parameters)[1:]
    return parameters.index(name) if name in parameters else None


def timestep_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the timestep that a model is called with; the one host read of a forward.

    Raises:
        ValueError: the model takes none.

    """
    t = kwargs.get("timestep")
    if t is None:
        kind: Any = type(module)
        place = _position_of(kind, "timestep")
        if place is None or place >= len(args):
            raise ValueError(
                f"{type(module).__name__} was called without a timestep, by which a cache graph finds its row"
            )
        t = args[place]
    if not isinstance(t, Tensor):
        return float(t)
    value = float(t.reshape(-1)[0])
    return RoundedTimestep(value, torch.finfo(t.dtype).eps) if t.dtype in (torch.float16, torch.bfloat16) else value


class RoundedTimestep(float):
    """A timestep that was rounded to 16 bits, and by how much: `eps` of its own size."""

    eps: float

    def __new__(cls, value: float, eps: float) -> RoundedTimestep:  # noqa: D102
        rounded = super().__new__(cls, value)
        rounded.eps = eps
        return rounded


class Schedule:
    """A graph's timesteps, checked against what the model is really given.

    Args:
        graph: the graph.
        pipe: returns the pipeline whose scheduler is followed, None once it is gone; None without a pipeline.
        resample: make a graph for the scheduler's own timesteps instead of refusing them.
        any_guidance: accept another guidance scale than the graph's.

    Attributes:
        graph: the graph in use; of `resample`, the resampled one.
        given_rows: for each evaluation, the row of the given graph that is followed.

    """

    def __init__(
        self,
        graph: CacheGraph,
        pipe: Callable[[], Any] | None,
        *,
        resample: bool = False,
        any_guidance: bool = False,
    ) -> None:
        self.graph = self._given = graph
        self.given_rows = list(range(graph.num_evaluations))
        self.pipe = pipe
        self.resample = resample
        self.any_guidance = any_guidance
        self._scheduled: Any = None

    def begins_anew(self, t: float) -> bool:
        """Whether the pipeline has set its timesteps since the last forward; looks at them then."""
        pipe = self.pipe() if self.pipe is not None else None
        scheduler = getattr(pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None or timesteps is self._scheduled:
            return False
        self._scheduled = timesteps
        values = as_model_sees(timesteps, t, scheduler)
        if self.resample:
            self.graph = _resampled(self._given, values)
            self.given_rows = nearest_rows(self._given, values)
        else:
            check_scheduler(self._given, scheduler)
            check_timesteps(self._given, values)
        check_call(self.graph, pipe, any_guidance=self.any_guidance)
        return True

    def evaluation(self, t: float) -> int:
        """Return the evaluation that takes place at t.

        Raises:
            ValueError: none does.

        """
        timesteps = self.graph.timesteps
        e = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))
        if abs(timesteps[e] - t) > _tolerance(timesteps, t):
            raise ValueError(
                f"the model is called at t = {float(t):g}, but the graph's {len(timesteps)} evaluations lie at "
                f"{_shown(timesteps)}; use its scheduler and number of steps, or apply it with resample=True"
            )
        return e


def _tolerance(timesteps: Sequence[float], t: float) -> float:
    return TOLERANCE * max(map(abs, timesteps)) + getattr(t, "eps", 0.0) * abs(t)


def _shown(timesteps: Sequence[float]) -> str:
    return ", ".join(f"{t:g}" for t in timesteps[:3]) + (f", ..., {timesteps[-1]:g}" if len(timesteps) > 3 else "")


def as_model_sees(timesteps: Any, t: float, scheduler: Any) -> tuple[float, ...]:
    """Return a scheduler's timesteps in the units of the model, which some pipelines divide by the training steps."""
    values = tuple(float(value) for value in torch.as_tensor(timesteps).tolist())
    training = float(getattr(scheduler.config, "num_train_timesteps", 1000))
    distance = [min(abs(value / unit - t) for value in values) for unit in (1.0, training)]
    return values if distance[0] <= distance[1] else tuple(value / training for value in values)


def _resampled(graph: CacheGraph, timesteps: Sequence[float]) -> CacheGraph:
    """Return a graph for other timesteps, see `l2c.graph.resampling`; a warning says what it loses."""
    result = resampled(graph, timesteps)
    log.warning(
        "the graph was made for %d evaluations and is resampled to %d by nearest timestep, its slopes rescaled to "
        "the new distances; its error was not measured and may be many times that of a graph made for these "
        "timesteps, which l2c.Calibration.graph makes without the model\n%s",
        graph.num_evaluations,
        result.num_evaluations,
        result.summary(),
    )
    return result
