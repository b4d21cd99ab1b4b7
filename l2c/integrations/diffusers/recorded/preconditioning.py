"""What a pipeline does between its scheduler and its network at each step: states scaled, predictions changed.

Sana Sprint and Cosmos step with `a * prediction + b * state`, by coefficients of their own at every time. These are
read off a run of the pipeline in which drawn tensors stand in the place of predictions, so that no model runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from l2c.backbones.forwards import replaced
from l2c.backbones.layer_form import first
from l2c.integrations.diffusers.recorded.answers import Answers
from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.regions import narrowed
from l2c.integrations.diffusers.recorded.steps import CLOSE, RecordedError, ended
from l2c.integrations.diffusers.scheduler_solver import Preconditioning
from l2c.integrations.diffusers.timesteps import trajectory_of


def fitted(wanted: Tensor, *parts: Tensor) -> tuple[float, ...] | None:
    """Return the factors with which some tensors add up to another one of their shape; None where none do."""
    if any(part.shape != wanted.shape for part in parts):
        return None
    columns = torch.stack([part.double().flatten() for part in parts], dim=1)
    target = wanted.double().flatten()
    factors = torch.linalg.lstsq(columns, target).solution
    if float((columns @ factors - target).abs().max()) > CLOSE * float(target.abs().max()):
        return None
    return tuple(factors.tolist())


@dataclass
class _Run:
    """A run of a pipeline: what its network was given and answered, what its scheduler was given, what was drawn."""

    inputs: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    taken: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    draws: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def preconditioning_of(
    pipe: Any, model: nn.Module, call: RecordedCall, settings: Mapping[str, Any]
) -> Preconditioning | None:
    """Return what a pipeline does around its network at each evaluation; None where it is no sum of two terms.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        call: the model's first call in a call of the pipeline with these settings, which was the last one.
        settings: of that call, without guidance.

    """
    _, count = trajectory_of(pipe, call.t)
    run, region = _Run(), call.region
    with _recording(pipe, model, run, count), _Draws(run.draws):
        ended(pipe, settings)
    if not len(run.inputs) == len(run.predictions) == len(run.taken) == count:
        return None
    found = []
    for x, prediction, taken, state in zip(run.inputs, run.predictions, run.taken, run.states, strict=True):
        x, prediction, taken, state = (narrowed(each, region) for each in (x, prediction, taken, state))
        scale, weights = fitted(x, state), fitted(taken, prediction, state)
        if scale is None or weights is None:
            return None
        found.append((*scale, *weights))
    sizes = [_size_of(run.states[0], noise) for noise in run.draws if noise.numel() == run.states[0].numel()]
    inputs, outputs, states = zip(*found, strict=True)
    return Preconditioning(next((size for size in sizes if size is not None), None), inputs, outputs, states)


def _size_of(state: Tensor, noise: Tensor) -> float | None:
    """Return the factor by which a state is larger than a draw, whose values may lie in another order."""
    size = fitted(state.flatten().sort().values, noise.flatten().sort().values)
    return None if size is None else size[0]


@contextmanager
def _recording(pipe: Any, model: nn.Module, run: _Run, count: int) -> Iterator[None]:
    """Write a run down up to its last step, in a `with` block in which the model answers by chance."""
    step = pipe.scheduler.step
    taken_by = inspect.signature(step)
    drawn = Answers().of(model)

    def answer(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = drawn(forward, *args, **kwargs)
        run.inputs.append(RecordedCall.of(model, args, kwargs).x.clone())
        run.predictions.append(first(made, listed=True).clone())
        return made

    def record(*args: Any, **kwargs: Any) -> Any:
        given = taken_by.bind(*args, **kwargs).arguments
        run.taken.append(given["model_output"].clone())
        run.states.append(given["sample"].clone())
        if len(run.taken) == count:
            raise RecordedError
        return step(*args, **kwargs)

    pipe.scheduler.step = record
    try:
        with torch.random.fork_rng(), replaced({model: answer}):
            yield
    finally:
        del pipe.scheduler.step


class _Draws(TorchFunctionMode):
    """Keeps what is drawn by `torch.randn` in a `with` block."""

    def __init__(self, draws: list[Tensor]) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.randn:
            self.draws.append(made.clone())
        return made
