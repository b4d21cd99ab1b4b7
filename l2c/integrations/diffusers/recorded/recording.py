"""Records what a pipeline makes of prompts: its model's arguments for each, and for none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from l2c.backbones.layer_form import first
from l2c.integrations.diffusers.denoisers import denoisers_of
from l2c.integrations.diffusers.guidance import NEGATIVE, PipelineGuidance
from l2c.integrations.diffusers.prompts import condition_of, empty_of
from l2c.integrations.diffusers.recorded.axes import axes_of, axes_of_none, twice_of
from l2c.integrations.diffusers.recorded.call import BESIDE
from l2c.integrations.diffusers.recorded.conditions import ALONE, places_in
from l2c.integrations.diffusers.recorded.guided import SCALE, by_effect, combination
from l2c.integrations.diffusers.recorded.moving import moving_calls, moving_runs
from l2c.integrations.diffusers.recorded.preconditioning import preconditioning_of
from l2c.integrations.diffusers.recorded.regions import region_of
from l2c.integrations.diffusers.recorded.steps import (
    CLOSE,
    RecordedCall,
    RecordedStep,
    difference,
    distance,
    first_step,
    recorded_call,
)
from l2c.integrations.diffusers.scheduler_solver import Preconditioning
from l2c.io.tensors import leaves_of

log = logging.getLogger(__name__)
OF_ITS_OWN = (
    "%s combines its guidance branches in a way of its own; it is calibrated under %s, so that errors foretold are "
    "those of another image"
)
LEFT_OUT = "%s is calibrated without the branches of %s, so that errors foretold are those of another image"
DRAWN_TOO = (
    "%s draws %s too, which moves beside the noisy input; it is calibrated as if that stayed, so that errors "
    "foretold are those of another image"
)
NOT_REPEATABLE = (
    "{} changes what its {} predicts before the scheduler steps, in a way that cannot be repeated, so that it cannot "
    "be calibrated; l2c.apply a graph here of another pipeline of this model (text-to-image, or without options), or "
    "take a cache that decides at run time (diffusers' FirstBlockCache)"
)


@dataclass(frozen=True)
class Recording:
    """What a pipeline makes of prompts.

    Attributes:
        calls: the first call of the model for each prompt, and for none: the unconditional branch of guidance, which
            may be of another model.
        places: axes of prompts in the conditions, see `conditions.places_of`; or `ALONE`.
        runs: how often each module of the model runs in a forward, by its name; None = each once.
        sign: see `RecordedStep`.
        around: what the pipeline does between scheduler and model; None = nothing but that sign.
        guidance: the mode by which the pipeline combines its two branches; None = it has no two branches, or they
            were not found.
        given: arguments of the call for the first prompt.
        own_way: that guided calls combine the branches in another way than any of ours, in words; None = they do not.
        rowed: see `RecordedStep`.
        places_of_none: axes of prompts in the conditions of the last call, where that is of another model or another
            layout.

    """

    calls: tuple[RecordedCall, ...]
    places: Any
    runs: dict[str, int] | None
    sign: float
    guidance: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    own_way: str | None = None
    around: Preconditioning | None = None
    rowed: bool = False
    places_of_none: Any = ALONE

    @property
    def model(self) -> Any:
        """The model of the prompts' calls."""
        return self.calls[0].model

    def of_what_moves(self) -> Recording:
        """Return the recording without the modules that run on the prompt alone, for which the model runs twice."""
        if self.runs is None or self.model is None:
            return self
        return replace(self, runs=moving_calls(self.model, moving_runs(self.calls[0])))


def record(pipe: Any, prompts: Sequence[Any], guidance: PipelineGuidance, **settings: Any) -> Recording:
    """Call a pipeline up to the first call of its model for each prompt, and to the first step of its scheduler.

    The model is the denoiser that is called first.

    Args:
        pipe: the pipeline.
        prompts: texts, labels or pictures.
        guidance: the pipeline's.
        settings: of its call.

    Raises:
        ValueError: if the scheduler does not get the model's prediction, or the model is called without a timestep.

    """
    name, models = condition_of(pipe), list(denoisers_of(pipe).values())
    step, listed = _first_step(pipe, models, name, prompts[0], settings)
    model = next((call.model for call in step.calls if call.model is not None), models[0])
    settings = with_texts(settings, listed)

    def given(*batch: Any, **changes: Any) -> dict[str, Any]:
        return {**settings, **changes, name: list(batch) if listed or len(batch) > 1 else batch[0]}

    raw = [recorded_call(pipe, model, **given(prompt)) for prompt in prompts]
    region = region_of(step.calls[0].x, raw[0].x, step.sample, raw[0].times) if step.calls else ()
    calls = [call.split(region).fed() for call in raw]
    if drawn := _drawn(step, calls[0]):
        log.warning(DRAWN_TOO, type(pipe).__name__, ", ".join(drawn))

    def call(*batch: Any, **changes: Any) -> RecordedCall:
        return recorded_call(pipe, model, **given(*batch, **changes)).split(region).fed()

    guided, on = RecordedStep(), with_texts(guidance.on, listed)
    if guidance.branches:
        with guidance.at(SCALE) as scaled:
            guided = first_step(pipe, models, **{**on, **given(prompts[0]), **scaled}).split(region)
    of_first, sign, around = given(prompts[0]), step.sign(region), None
    if sign is None:
        places = axes_of(calls[0], (lambda: call(prompts[0], prompts[0]),))
        whole = _of_batches(model, step.split(region), guided, calls, places, guidance.mode)
        if whole is not None:
            own_way = None if whole.guidance else OF_ITS_OWN % (type(pipe).__name__, guidance.mode)
            return replace(whole, given=of_first, own_way=own_way, rowed=step.rowed)
        sign, around = 1.0, _around(pipe, model, step, calls[0], of_first)
    pictures = {option: twice_of(value) for option, value in settings.items() if option != name}
    twice = (lambda: call(prompts[0], prompts[0]), lambda: call(prompts[0], prompts[0], **pictures))
    places = axes_of(calls[0], (*twice, lambda: guided.calls[0]), guided)

    def effect() -> str | None:
        with guidance.at(SCALE) as scaled:
            return by_effect(pipe, model, {**on, **of_first, **scaled}, sign or 1.0, guidance.mode, region)

    uncond, mode, known = _unconditional(guided, calls[0], places, sign, around, guidance.mode, effect)
    own_way = None if known else OF_ITS_OWN % (type(pipe).__name__, guidance.mode)
    if uncond is None:  # of models without guidance, or guided in another way
        uncond = calls[0] if name == "image" else replace(calls[0], conditions=call(empty_of(pipe)).conditions)
    of_none = axes_of_none(pipe, guidance, uncond, calls[0], {**on, **given(prompts[0], prompts[0])})
    every, runs = (*calls, uncond), step.runs.get(model)
    return Recording(every, places, runs, sign, mode, of_first, own_way, around, step.rowed, of_none)


def _unconditional(
    guided: RecordedStep,
    call: RecordedCall,
    places: Any,
    sign: float,
    around: Preconditioning | None,
    usual: str,
    by_effect: Callable[[], str | None],
) -> tuple[RecordedCall | None, str | None, bool]:
    """Return a call of the unconditional branch, its mode of guidance, and whether that is one of ours.

    Args:
        guided: the first step under guidance; without calls there is none.
        call: the call without guidance.
        places: axes of prompts in the conditions.
        sign: of predictions.
        around: what the pipeline does between scheduler and model.
        usual: the pipeline's mode.
        by_effect: finds the mode by the next step, as the scheduler may be given both branches.

    """
    if not guided.calls:
        return None, None, True
    found, region = guided.unconditional(call, places), call.region
    several = sum(len(made.x) for made in guided.calls) > 2 * len(call.x)  # a picture's guidance too
    if found is None:
        return None, None, not several
    uncond, *predictions = found
    pair = [guided.changed(sign * prediction, around, region) for prediction in reversed(predictions)]
    mode = combination(guided.taken, pair, usual, SCALE, region, normed=around is None)
    if mode is None and around is None:
        mode = by_effect()
    return uncond, mode, mode is not None


def _around(
    pipe: Any, model: nn.Module, step: RecordedStep, call: RecordedCall, settings: Mapping[str, Any]
) -> Preconditioning:
    """Return what a pipeline does between its scheduler and its model; refuse what is not repeatable."""
    around = preconditioning_of(pipe, model, call, settings) if step.repeatable else None
    if around is not None and step.taken is not None:
        own = step.changed(step.predictions[0], around, call.region)
        if difference(own, step.taken, call.region) < CLOSE:
            return around
    raise ValueError(NOT_REPEATABLE.format(type(pipe).__name__, type(model).__name__))


def _of_batches(
    model: nn.Module,
    step: RecordedStep,
    guided: RecordedStep,
    calls: Sequence[RecordedCall],
    places: Any,
    usual: str,
) -> Recording | None:
    """Return the recording of a pipeline whose batch holds all branches at any scale; None where it does not.

    Args:
        model: its model.
        step: the first step of a prompt at the neutral scale, at which the scheduler gets the conditional prediction.
        guided: that at `SCALE`.
        calls: the call for each prompt.
        places: axes of prompts in the conditions; `ALONE` where the pipeline takes one prompt a call.
        usual: the pipeline's mode of guidance.

    """
    if step.taken is None or not len(step.predictions) == len(guided.predictions) == 1:
        return None
    count, region = len(step.predictions[0]) // len(step.taken), calls[0].region
    if count < 2 or len(step.predictions[0]) % len(step.taken):
        return None
    if places == ALONE:
        places = places_in(calls[0].conditions, len(calls[0].x))
        if not _rows_run_alone(model, step, places):
            return None
    for place, prediction in enumerate(step.predictions[0].chunk(count)):
        sign = replace(step, predictions=[prediction]).sign(region)
        if sign is None:
            continue
        parts = [call.in_parts(places, count) for call in calls]
        branches = [sign * branch for branch in guided.predictions[0].chunk(count)]
        others = sorted(set(range(count)) - {place}, key=lambda i: _far(parts[0], i, place), reverse=True)
        modes = {i: combination(guided.taken, [branches[place], branches[i]], usual, SCALE, region) for i in others}
        uncond = next((i for i in others if modes[i] is not None), others[0])
        made = (*(part[place] for part in parts), parts[0][uncond])
        return Recording(made, places, step.runs.get(model), sign, modes[uncond])
    return None


def _far(parts: Sequence[RecordedCall], one: int, other: int) -> float:
    return distance(parts[one].conditions, parts[other].conditions)


@torch.no_grad()
def _rows_run_alone(model: nn.Module, step: RecordedStep, places: Any) -> bool:
    """Return whether the model predicts for one row of a call alone what it does for it in the batch."""
    call, whole = step.calls[0], step.predictions[0]
    one = call.in_parts(places, len(call.x))[-1]
    alone = first(model(**one.arguments(one.x, torch.tensor([one.t]), one.conditions)), listed=True)
    return difference(alone, whole[-len(alone) :]) < CLOSE


def _first_step(
    pipe: Any, models: Sequence[nn.Module], name: str, prompt: Any, settings: Mapping[str, Any]
) -> tuple[RecordedStep, bool]:
    """Return the first step of a prompt, and whether the pipeline takes prompts as a list; some take one alone."""

    def step(listed: bool) -> tuple[RecordedStep, bool]:
        own = with_texts(settings, listed)
        return first_step(pipe, models, **{**own, name: [prompt] if listed else prompt}), listed

    try:
        return step(True)
    except ValueError as refusal:
        try:
            return step(False)
        except ValueError:
            raise refusal from None


def with_texts(settings: Mapping[str, Any], listed: bool) -> dict[str, Any]:
    """Return arguments of a call, negative prompts in the form of its prompts."""
    return {name: _in_form(value, listed) if name in NEGATIVE else value for name, value in settings.items()}


def _in_form(text: Any, listed: bool) -> Any:
    """Return a text as a pipeline takes it, as the one member of a list or alone."""
    if listed:
        return text if isinstance(text, list) or not isinstance(text, str) else [text]
    return text[0] if isinstance(text, list) and len(text) == 1 else text


def _drawn(step: RecordedStep, other: RecordedCall) -> list[str]:
    """Return the names of conditions that differ from draw to draw; what lies beside the noisy input may."""
    if not step.calls:
        return []
    one, theirs = step.calls[0].split(other.region).fed(), dict(leaves_of(other.conditions))
    pairs = [(path[0], ours, theirs.get(path)) for path, ours in leaves_of(one.conditions) if path[0] != BESIDE]
    alike = [(name, a, b) for name, a, b in pairs if b is not None and a.is_floating_point() and a.shape == b.shape]
    return list(dict.fromkeys(str(name) for name, a, b in alike if not torch.equal(a, b)))
