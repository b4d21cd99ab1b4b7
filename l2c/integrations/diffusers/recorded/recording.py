"""Records what a pipeline makes of prompts: its model's arguments for each, and for none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from l2c.diffusion import Guidance
from l2c.integrations.diffusers.guidance import PipelineGuidance
from l2c.integrations.diffusers.prompts import array_of, condition_of, empty_of
from l2c.integrations.diffusers.recorded.conditions import ALONE, places_of
from l2c.integrations.diffusers.recorded.steps import (
    RecordedCall,
    RecordedStep,
    close,
    difference,
    first_step,
    recorded_call,
)
from l2c.io.memory import out_of_memory

NORMED = "cfg_normed"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """What a pipeline makes of prompts.

    Attributes:
        calls: the first call of the model for each prompt, and for none: the unconditional branch of guidance.
        places: axes of prompts in the conditions, see `conditions.places_of`; or `ALONE`.
        runs: how often each module of the model runs in a forward, by its name.
        sign: see `RecordedStep`.
        guidance: the mode by which the pipeline combines its two branches; None = it has no two branches, or they
            were not found.

    """

    calls: tuple[RecordedCall, ...]
    places: Any
    runs: dict[str, int] | None
    sign: float
    guidance: str | None = None


def record(
    pipe: Any, model: nn.Module, prompts: Sequence[Any], guidance: PipelineGuidance, **settings: Any
) -> Recording:
    """Call a pipeline up to the first call of its model for each prompt, and to the first step of its scheduler.

    Args:
        pipe: the pipeline.
        model: its denoiser, the first of two.
        prompts: texts, labels or pictures.
        guidance: the pipeline's.
        settings: of its call.

    Raises:
        ValueError: if the scheduler does not get the model's prediction, or the model is called without a timestep.

    """
    name = condition_of(pipe)
    negative = settings.get("negative_prompt")
    settings |= {} if not isinstance(negative, str) else {"negative_prompt": [negative]}  # of the prompt's type
    first = {**settings, name: [prompts[0]]}
    step = first_step(pipe, model, **first)
    if step.sign is None:
        raise ValueError(
            f"{type(pipe).__name__} changes what its {type(model).__name__} predicts before the scheduler steps, "
            "in a way that cannot be repeated; calibrate another pipeline of this model (text-to-image, say) and "
            "l2c.apply its graph here"
        )

    def call(*batch: Any, **changes: Any) -> RecordedCall:
        given = {**settings, **changes, name: list(batch)}
        return recorded_call(pipe, model, **given).split(*step.beside).fed()

    calls = [call(prompt) for prompt in prompts]
    guided, scale = RecordedStep(), 5.0  # any at which both branches count
    if guidance.branches:
        with guidance.at(scale) as scaled:
            guided = first_step(pipe, model, **{**guidance.on, **first, **scaled})
        guided.calls = [made.split(*step.beside).fed() for made in guided.calls]
    pictures = {option: twice_of(value) for option, value in settings.items() if option != name}
    twice = (lambda: call(prompts[0], prompts[0]), lambda: call(prompts[0], prompts[0], **pictures))
    places = _axes(calls[0], (*twice, lambda: guided.calls[0]))
    uncond, mode = None, None
    if guided.calls:
        found = guided.unconditional(calls[0], places)
        if found is not None:
            uncond, *predictions = found
            mode = _combination(guided.taken, [step.sign * p for p in reversed(predictions)], guidance.mode, scale)
            if mode is None:
                log.warning(
                    "%s combines its guidance branches in a way of its own; it is calibrated under %s, so that "
                    "errors foretold are those of another image",
                    *(type(pipe).__name__, guidance.mode),
                )
    if uncond is None:  # of models without guidance, or guided in another way
        uncond = calls[0].conditions if name == "image" else call(empty_of(pipe)).conditions
    return Recording((*calls, replace(calls[0], conditions=uncond)), places, step.runs, step.sign, mode)


def _axes(one: RecordedCall, twice: Sequence[Callable[[], RecordedCall]]) -> Any:
    """Return where the axis of prompts lies in each condition, `ALONE` where a pipeline takes one prompt a call.

    Args:
        one: the call for one prompt.
        twice: ways to get a call of two rows; one that fails is passed over.

    """
    for made in twice:
        try:
            two = made()
            if len(two.x) == 2 * len(one.x):
                return places_of(one.conditions, two.conditions)
        except Exception as error:  # the pipeline's own, of any kind
            if out_of_memory(error):
                raise
    return ALONE


def _combination(taken: Tensor | None, pair: Sequence[Tensor], usual: str, scale: float) -> str | None:
    """Return the mode of guidance that makes what a scheduler took of two predictions, the conditional one first."""
    if taken is None:
        return None
    merged = {mode: Guidance(mode, scale).combine(*(p.float() for p in pair)) for mode in (usual, NORMED)}
    best = min(merged, key=lambda mode: difference(merged[mode], taken))
    return best if close(merged[best], taken) else None


def twice_of(option: Any) -> Any:
    """Return the pictures of an option of a call, or of two prompts in the place of one; others as they are."""
    if isinstance(option, Tensor):
        return torch.cat([option, option]) if option.ndim > 2 else option
    pictures = [array_of(each) is not None for each in (option if isinstance(option, (list, tuple)) else [option])]
    if not any(pictures):
        return option
    return [*option, *option] if isinstance(option, (list, tuple)) else [option, option]
