"""Records one call of a pipeline: arguments of its model, runs of its modules, inputs of its scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.layer_form import first
from l2c.integrations.diffusers.timesteps import arguments_of, time_argument, timestep_of


def calls_of(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Return how often each module runs in one forward, by its name; modules that do not run are left out.

    Args:
        model: the model.
        run: calls it once.

    """
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, Any], None]:
        def add(module: nn.Module, args: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return add

    hooks = [module.register_forward_pre_hook(count(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@dataclass(frozen=True)
class RecordedCall:
    """The first call of a pipeline's model.

    Attributes:
        x: the noisy input (N, ...).
        t: the timestep.
        conditions: the other arguments.
        noisy: name of the argument that takes x.
        time: place of the timestep among the arguments, see `time_argument`.
        listed: whether x is given as a list of N tensors.

    """

    x: Tensor
    t: float
    conditions: dict[str, Any]
    noisy: str
    time: tuple[str, ...]
    listed: bool

    def arguments(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's arguments for other inputs."""
        given = {self.noisy: list(x.unbind()) if self.listed else x, **conditions}
        *inside, name = self.time
        if not inside:
            return {**given, name: t}
        return {**given, inside[0]: {**given.get(inside[0], {}), name: t}}


class _RecordedError(Exception):
    """Ends a pipeline's call when the recording is complete."""


def recorded_call(pipe: Any, model: nn.Module, **settings: Any) -> RecordedCall:
    """Call a pipeline up to the first call of its model.

    Raises:
        ValueError: if the model is not called, or called without a timestep.

    """
    calls: list[RecordedCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        t = timestep_of(module, args, kwargs)
        given = arguments_of(module, args, kwargs)
        noisy = next(iter(given))
        x = given.pop(noisy)
        found = time_argument(given)
        assert found is not None, "timestep_of refuses this"
        given = _without(given, found[0])
        given.pop("return_dict", None)
        conditions = {key: value for key, value in given.items() if value is not None}
        listed = isinstance(x, list)
        calls.append(RecordedCall(torch.stack(x) if listed else x, t, conditions, noisy, found[0], listed))
        raise _RecordedError

    hook = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        pipe(**settings)
    except _RecordedError:
        return calls[0]
    finally:
        hook.remove()
    raise ValueError(f"{type(pipe).__name__} ended without calling its {type(model).__name__}")


def _without(given: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    name, *inside = path
    rest = {key: value for key, value in given.items() if key != name}
    return {**rest, name: _without(given[name], tuple(inside))} if inside else rest


def prediction_of(output: Any) -> Tensor:
    """Return a model's prediction (N, ...); some answer with a list of N tensors."""
    while not isinstance(output, Tensor):
        if isinstance(output, list):
            return torch.stack(output)
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


@dataclass(frozen=True)
class FirstStep:
    """The first step of a pipeline's trajectory.

    Attributes:
        calls: how often each module of the model ran in a forward, by its name; None = each once.
        sign: -1.0 where the scheduler gets the prediction with the other sign (Lumina, Z-Image), else 1.0.

    """

    calls: dict[str, int] | None
    sign: float


@torch.no_grad()
def first_step(pipe: Any, model: nn.Module, **settings: Any) -> FirstStep:
    """Call a pipeline up to the first step of its scheduler; the model runs once.

    Raises:
        ValueError: if the scheduler does not get the model's prediction, or does not step the model's input.

    """
    seen: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        given = dict(zip(("model_output", "timestep", "sample"), args, strict=False)) | kwargs
        seen.update(given)
        raise _RecordedError

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.setdefault("prediction", prediction_of(output))

    hook = model.register_forward_hook(look)
    pipe.scheduler.step = record

    def run() -> None:
        try:
            pipe(**settings)
        except _RecordedError:
            return

    try:
        calls = calls_of(model, run)
    finally:
        hook.remove()
        del pipe.scheduler.step
    sign = _sign(first(seen["prediction"]), seen["model_output"]) if "model_output" in seen else 1.0
    if sign is None:
        raise ValueError(
            f"{type(pipe).__name__} changes what its {type(model).__name__} predicts before the scheduler steps, "
            "in a way that cannot be repeated; a graph can be applied to it, but not calibrated on it"
        )
    return FirstStep(calls, sign)


def _sign(predicted: Tensor, taken: Tensor) -> float | None:
    """Return the factor from the model's prediction to the scheduler's input; variance may be left out."""
    predicted, taken = predicted.float(), taken.float()
    size = taken[0].numel()
    if len(predicted) != len(taken) or predicted[0].numel() < size:
        return None
    ours, theirs = predicted.flatten(1)[:, :size], taken.flatten(1)
    for sign in (1.0, -1.0):
        if torch.allclose(sign * ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max())):
            return sign
    return None
