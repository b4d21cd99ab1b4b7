"""Finds the axis of prompts in the conditions of a pipeline's model, by calls for two prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.integrations.diffusers.guidance import PipelineGuidance
from l2c.integrations.diffusers.prompts import array_of
from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.conditions import ALONE, one_for_all, places_of
from l2c.integrations.diffusers.recorded.guided import SCALE
from l2c.integrations.diffusers.recorded.steps import RecordedStep, recorded_call
from l2c.io.memory import out_of_memory


def axes_of(
    one: RecordedCall, twice: Sequence[Callable[[], RecordedCall]], guided: RecordedStep | None = None
) -> Any:
    """Return where the axis of prompts lies in each condition, `ALONE` where a pipeline takes one prompt a call.

    Args:
        one: the call for one prompt.
        twice: ways to get a call of two rows; one that fails is passed over, and one that gives both rows a condition
            of one (a picture for two texts) where the guided call gives each its own.
        guided: the guided step; None = not known.

    """
    batch = guided.calls[0] if guided is not None and len(guided.calls) == 1 else None
    of_branches: Any = None
    if batch is not None and len(batch.x) == 2 * len(one.x):
        with contextlib.suppress(KeyError, StopIteration, ValueError):
            of_branches = places_of(one.conditions, batch.conditions)
    for made in twice:
        try:
            two = made()
            if len(two.x) != 2 * len(one.x):
                continue
            places = places_of(one.conditions, two.conditions)
            if of_branches is None or not one_for_all(places, of_branches):
                return places
        except Exception as error:  # the pipeline's own, of any kind
            if out_of_memory(error):
                raise
    return ALONE


def axes_of_none(
    pipe: Any, guidance: PipelineGuidance, uncond: RecordedCall, cond: RecordedCall, of_two: Mapping[str, Any]
) -> Any:
    """Return where the axis of prompts lies in the conditions of the unconditional call.

    Args:
        pipe: the pipeline.
        guidance: the pipeline's.
        uncond: the call for one prompt. One of another model than the conditional call, or laid out in another way,
            has axes of its own.
        cond: the conditional call.
        of_two: arguments of a call for two prompts.

    """
    if not uncond.apart_from(cond):
        return ALONE
    model: Any = uncond.model
    with guidance.at(SCALE) as scaled:
        given = {**of_two, **scaled}
        return axes_of(uncond, (lambda: recorded_call(pipe, model, **given).split(uncond.region).fed(),))


def twice_of(option: Any) -> Any:
    """Return the pictures of an option of a call, or of two prompts in the place of one; others as they are."""
    if isinstance(option, Tensor):
        return torch.cat([option, option]) if option.ndim > 2 else option
    pictures = [array_of(each) is not None for each in (option if isinstance(option, (list, tuple)) else [option])]
    if not any(pictures):
        return option
    return [*option, *option] if isinstance(option, (list, tuple)) else [option, option]
