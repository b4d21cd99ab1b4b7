"""How a pipeline's call of a user's own is guided, read where its model is called."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.layer_form import first
from l2c.graph.binding import NEUTRAL_SCALE
from l2c.integrations.diffusers.calls import call_of
from l2c.integrations.diffusers.guidance import BESIDE, PipelineGuidance, defaults_of
from l2c.integrations.diffusers.prompts import condition_of
from l2c.integrations.diffusers.recorded.recording import with_texts
from l2c.integrations.diffusers.recorded.steps import RecordedError, Unset, ended
from l2c.integrations.diffusers.recorded.turns import Turns
from l2c.io.memory import out_of_memory

log = logging.getLogger(__name__)
ONE_SCALE = (
    "%s guides its %s by %s=%g; it is calibrated at %g for all its denoisers, so that errors foretold are those of "
    "another image"
)

ONE_FORM = (
    "%s gives %s to its %s and not to its %s; it is calibrated as if both were given what the first is, so that "
    "errors foretold are those of another image"
)


@dataclass(frozen=True)
class OwnCall:
    """A pipeline's call of a user's own, with the settings of a calibration.

    Attributes:
        guided_by: its arguments beside the scale that say how it is guided, see `PipelineGuidance.options_of`.
        arguments: of the call for the first prompt.

    """

    guided_by: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def last_sample(pipe: Any, call: OwnCall, seed: int) -> Tensor:
    """Return where a pipeline's call ends: as its scheduler's last step left it, or what is returned without steps.

    Args:
        pipe: the pipeline.
        call: its call.
        seed: of all that is drawn.

    Raises:
        ValueError: if the pipeline does not take the call, or returns no tensor.

    """
    taken, given = defaults_of(pipe), dict(call.arguments)
    if "generator" in taken:
        given["generator"] = torch.Generator().manual_seed(seed)
    if "output_type" in taken:
        given["output_type"] = "latent"
    steps = pipe.scheduler.step = _Steps(pipe.scheduler)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = pipe(**given)
    except ValueError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    finally:
        del pipe.scheduler.step
    return (first(output, listed=True) if steps.last is None else steps.last).float()


class _Steps:
    """The steps of a scheduler, the last of which is kept; a copy of the scheduler has its own."""

    def __init__(self, scheduler: Any) -> None:
        functools.update_wrapper(self, scheduler.step)  # pipelines look at its arguments
        self._scheduler, self._step = scheduler, scheduler.step
        self.last: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._step(*args, **kwargs)
        self.last = first(output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Any = memo[id(self._scheduler)]
        return functools.partial(type(copied).step, copied)


def own_call(
    pipe: Any,
    model: nn.Module,
    guidance: PipelineGuidance,
    scale: float | None,
    recorded: Mapping[str, Any],
    options: Mapping[str, Any],
) -> OwnCall:
    """Return a user's own call.

    The pipeline is called up to its model, as many fill in what they are not given (`guidance_scale_2`).

    Args:
        pipe: the pipeline.
        model: the denoiser that it calls first.
        guidance: the pipeline's.
        scale: of the call; None = its own.
        recorded: arguments of a call whose guidance is off.
        options: what is asked for, the scale, prompt and steps aside.

    """
    own = guidance.scale_of({**defaults_of(pipe), **options})
    asked = own if scale is None else scale
    asides = {name: {**defaults_of(pipe), **options}[name] for name in guidance.off if name in BESIDE}
    switched = {*guidance.off, *guidance.single} - set(asides)  # the pipeline changes its model for some of these
    call = {name: value for name, value in recorded.items() if name not in switched}
    call |= {name: value for name, value in options.items() if name in switched}
    listed = isinstance(call[condition_of(pipe)], list)

    def read(call: Mapping[str, Any]) -> OwnCall:
        call = with_texts(call, listed)
        return OwnCall(_guided_by(pipe, model, guidance, call, asides), {**call, **asides})

    if asked == own:
        with contextlib.suppress(ValueError):  # a scale for each of another number of steps
            return read(call)
    return read({**call, **guidance.arguments(asked)})


def _guided_by(
    pipe: Any, model: nn.Module, guidance: PipelineGuidance, call: Mapping[str, Any], asides: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    unset = Unset(pipe)

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        frame = call_of(pipe)
        if not unset and frame is not None:
            found.update(guidance.options_of(pipe, {**frame.f_locals, **asides}))
            raise RecordedError

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        ended(pipe, call)
    finally:
        hook.remove()
    return found


def with_scales(
    pipe: Any, turns: Turns, guidance: PipelineGuidance, scale: float | None, guided: Mapping[str, Any]
) -> Turns:
    """Return turns with the guidance scales that denoisers have of their own (`transformer_2`: `guidance_scale_2`).

    A warning tells of scales that cannot be followed, where the first denoiser is not guided or all make each
    evaluation, and of denoisers that are given other arguments than the first one (a control).

    Args:
        pipe: the pipeline.
        turns: of its denoisers.
        guidance: how it is guided.
        scale: of the first one; None = no guidance.
        guided: how it is guided besides.

    """
    usual, *others = turns.models
    followed = turns.experts and scale is not None and scale != NEUTRAL_SCALE.get(guidance.mode, scale)
    scales: dict[str, float] = {}
    for name in others:
        argument = f"{guidance.argument}{name.removeprefix(usual)}"
        own = guided.get(argument)
        if isinstance(own, float) and scale is not None and not math.isclose(own, scale):
            scales[name] = own
        if name in scales and not followed:
            log.warning(ONE_SCALE, type(pipe).__name__, name, argument, own, scale)
        for has, lacks in ((usual, name), (name, usual)) if turns.experts else ():
            if alone := [key for key in turns.given[has] if key not in turns.given[lacks]]:
                log.warning(ONE_FORM, type(pipe).__name__, ", ".join(alone), has, lacks)
    return dataclasses.replace(turns, scales=scales if followed else {})
