"""A guided step of a pipeline and where it leads, for pipelines that combine their branches after the scheduler."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.layer_form import first
from l2c.diffusion import Guidance
from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.regions import Region, narrowed
from l2c.integrations.diffusers.recorded.steps import CLOSE, RecordedError, Unset, difference, ended

NORMED = "cfg_normed"
SCALE = 5.0  # of guidance: any at which both branches count


@dataclass
class GuidedStep:
    """One evaluation of two branches, and where the pipeline is after it.

    Attributes:
        predictions: of the two branches.
        start: what the model was given.
        end: what it is given at the next evaluation.
        scheduler: as it stood before.
        given: arguments of its first step in this evaluation.

    """

    predictions: list[Tensor]
    start: Tensor
    end: Tensor
    scheduler: Any
    given: dict[str, Any]

    def onward(self, prediction: Tensor) -> Tensor:
        """Return what the model is given at the next evaluation where the scheduler is given a prediction."""
        scheduler = copy.deepcopy(self.scheduler)
        t, x = self.given["timestep"], self.given["sample"][: len(prediction)]
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
        place = int((scheduler.timesteps == t).nonzero()[0]) + 1
        scales = hasattr(scheduler, "scale_model_input")
        return scheduler.scale_model_input(x, scheduler.timesteps[place]) if scales else x


@torch.no_grad()
def moved_on(pipe: Any, model: nn.Module, **settings: Any) -> GuidedStep | None:
    """Call a pipeline up to its second evaluation; None where the first one is not of two branches run apart.

    None too where the scheduler is given another time than one of its own.
    """
    calls: list[RecordedCall] = []
    predictions: list[Tensor] = []
    before: list[tuple[Any, dict[str, Any]]] = []
    step = pipe.scheduler.step
    taken_by = inspect.signature(step)

    unset = Unset(pipe)

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if unset:
            return
        calls.append(RecordedCall.of(module, args, kwargs))
        if calls[-1].t != calls[0].t:
            raise RecordedError

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not unset:
            predictions.append(first(output, listed=True))

    def record(*args: Any, **kwargs: Any) -> Any:
        if not before:
            own = copy.copy(pipe.scheduler)
            del own.step
            before.append((copy.deepcopy(own), dict(taken_by.bind(*args, **kwargs).arguments)))
        return step(*args, **kwargs)

    hooks = [model.register_forward_pre_hook(look, with_kwargs=True), model.register_forward_hook(keep)]
    pipe.scheduler.step = record
    try:
        ended(pipe, settings)
    finally:
        for hook in hooks:
            hook.remove()
        del pipe.scheduler.step
    apart = len(calls) == 3 and len(predictions) == 2 and calls[2].x.shape == calls[0].x.shape
    if not apart or not before or not isinstance(before[0][1].get("sample"), Tensor):
        return None
    scheduler, given = before[0]
    if not bool((scheduler.timesteps == given.get("timestep")).any()):  # a time of the pipeline's own
        return None
    return GuidedStep(predictions, calls[0].x, calls[2].x, scheduler, given)


def combination(
    taken: Tensor | None,
    pair: Sequence[Tensor],
    usual: str,
    scale: float,
    region: Region,
    *,
    normed: bool = True,
) -> str | None:
    """Return the mode of guidance that makes what a scheduler took of two predictions, the conditional one first."""
    if taken is None:
        return None
    modes = (usual, "cfg", "uvit", *([NORMED] if normed else []))
    merged = {mode: Guidance(mode, scale).combine(*(p.float() for p in pair)) for mode in modes}
    far = {mode: difference(merged[mode], taken, region) for mode in merged}
    best = min(far, key=lambda mode: far[mode])
    return best if far[best] < CLOSE else None


def by_effect(
    pipe: Any, model: nn.Module, settings: Mapping[str, Any], sign: float, usual: str, region: Region
) -> str | None:
    """Return the mode of guidance that leads from a guided step's predictions to the input of the next one."""
    step = moved_on(pipe, model, **settings)
    if step is None:
        return None
    now, after = narrowed(step.start, region), narrowed(step.end, region)
    modes: dict[str, float] = {}
    for mode in dict.fromkeys((usual, "cfg", "uvit")):
        for cond, uncond in itertools.permutations(sign * prediction for prediction in step.predictions):
            made = step.onward(Guidance(mode, SCALE).combine(cond.float(), uncond.float()))
            far = float((narrowed(made, region) - after).abs().max() / (after - now).abs().max())
            modes[mode] = min(far, modes.get(mode, far))
    best = min(modes, key=lambda mode: modes[mode])
    return best if modes[best] < CLOSE else None
