"""How a pipeline's call of a user's own is guided, read where its model is called."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from l2c.integrations.diffusers.calls import call_of
from l2c.integrations.diffusers.guidance import BESIDE, PipelineGuidance, defaults_of
from l2c.integrations.diffusers.prompts import condition_of
from l2c.integrations.diffusers.recorded.recording import with_texts
from l2c.integrations.diffusers.recorded.steps import RecordedError, Unset, ended
from l2c.integrations.diffusers.recorded.turns import Turns

log = logging.getLogger(__name__)
ONE_SCALE = (
    "%s guides its %s by %s=%g; it is calibrated at %g for all its denoisers, so that errors foretold are those of "
    "another image"
)


def guided_by(
    pipe: Any,
    model: nn.Module,
    guidance: PipelineGuidance,
    scale: float | None,
    recorded: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of a call beside its scale that say how it is guided, see `PipelineGuidance.options_of`.

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

    def read(call: Mapping[str, Any]) -> dict[str, Any]:
        return _guided_by(pipe, model, guidance, with_texts(call, listed), asides)

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


def say_other_scales(
    pipe: Any, turns: Turns, guidance: PipelineGuidance, scale: float | None, guided: Mapping[str, Any]
) -> None:
    """Warn of denoisers with a guidance scale of their own: `transformer_2` with `guidance_scale_2`, if that differs.

    Args:
        pipe: the pipeline.
        turns: of its denoisers.
        guidance: how it is guided.
        scale: that all of them are calibrated at; None = no guidance.
        guided: what `guided_by` returned.

    """
    usual, *others = turns.models
    for name in others:
        argument = f"{guidance.argument}{name.removeprefix(usual)}"
        own = guided.get(argument)
        if isinstance(own, float) and scale is not None and not math.isclose(own, scale):
            log.warning(ONE_SCALE, type(pipe).__name__, name, argument, own, scale)
