"""Records calls of a pipeline: arguments of its model, runs of its modules, inputs of its scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.layer_form import first
from l2c.integrations.diffusers.denoisers import denoisers_of
from l2c.integrations.diffusers.recorded.call import RecordedCall, timed_calls
from l2c.integrations.diffusers.recorded.regions import Region, narrowed, region_beside
from l2c.integrations.diffusers.scheduler_solver import Preconditioning
from l2c.io.memory import out_of_memory

USUAL = (  # arguments of a step that every pipeline gives its scheduler, or that are its times
    *("model_output", "timestep", "sample", "eta", "generator", "return_dict", "prev_timestep"),
)
CLOSE = 1e-2  # of a scheduler's input and a prediction, in units of the largest value


def calls_of(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Return how often each module runs in one forward, by its name; modules that do not run are left out.

    Args:
        model: the model.
        run: calls it; where it does so more than once, its forwards are taken to be alike.

    """
    with _counting([model]) as counts:
        run()
    return _of_one_forward(counts[model])


@contextmanager
def _counting(models: Collection[nn.Module]) -> Iterator[dict[nn.Module, dict[str, int]]]:
    """Count in a `with` block how often each module of some models runs in their forwards, by its name."""
    counts: dict[nn.Module, dict[str, int]] = {model: {} for model in models}
    running: list[nn.Module] = []  # a module may be another network's too

    def count(model: nn.Module, name: str) -> Callable[[nn.Module, Any], None]:
        def add(module: nn.Module, args: Any) -> None:
            if module is model:
                running.append(model)
            if running and running[-1] is model:
                counts[model][name] = counts[model].get(name, 0) + 1

        return add

    hooks = [
        module.register_forward_pre_hook(count(model, name))
        for model in counts
        for name, module in model.named_modules()
    ]
    hooks += [model.register_forward_hook(lambda *_: running.clear(), always_call=True) for model in counts]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _of_one_forward(counts: Mapping[str, int]) -> dict[str, int]:
    """Return how often modules ran in each of several forwards that are alike."""
    return {name: -(-count // counts[""]) for name, count in counts.items()}


class RecordedError(Exception):
    """Ends a pipeline's call when the recording is complete."""


def ended(pipe: Any, settings: Mapping[str, Any]) -> bool:
    """Call a pipeline and return whether a recording ended the call.

    Where it breaks in a way that it does not explain itself, the error says which call it was.
    """
    try:
        pipe(**settings)
    except RecordedError:
        return True
    except ValueError:  # pipelines check what they are given
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{type(pipe).__name__} failed when it was called with {', '.join(settings)} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}), which records its model's conditions; "
            "give what its call needs in options"
        ) from error
    return False


class Unset:
    """Tells calls of a model that come before a pipeline sets its timesteps, which are none of the trajectory.

    GLM-Image keeps keys and values of pictures by such calls.
    """

    def __init__(self, pipe: Any) -> None:
        self._scheduler = pipe.scheduler
        self._before = getattr(pipe.scheduler, "timesteps", None)

    def __bool__(self) -> bool:
        return self._before is not None and self._scheduler.timesteps is self._before


def recorded_call(pipe: Any, model: nn.Module, **settings: Any) -> RecordedCall:
    """Call a pipeline up to the first call of one of its models.

    Raises:
        ValueError: if the model is not called, or called without a timestep.

    """

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if unset:
            return
        calls.append(replace(RecordedCall.of(module, args, kwargs), before=tuple(before)))
        raise RecordedError

    calls: list[RecordedCall] = []
    unset = Unset(pipe)
    hook = model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with timed_calls(pipe, denoisers_of(pipe).values()) as before:
            if ended(pipe, settings):
                return calls[0]
    finally:
        hook.remove()
    raise ValueError(
        f"{type(pipe).__name__} ended without calling its {type(model).__name__}; "
        "raise strength or num_inference_steps"
    )


@dataclass
class RecordedStep:
    """The first step of a pipeline's trajectory.

    Attributes:
        runs: how often each module of a model ran in a forward, by its name, for each model; without a model: each
            module once.
        calls: the models' calls.
        predictions: what they answered.
        taken: what the scheduler was given as the prediction; None = not known.
        sample: what the scheduler was given as the noisy sample; None = not known.
        repeatable: whether the scheduler does the same where it is given these and the timestep alone.
        rowed: whether the scheduler is given a timestep for each row.

    """

    runs: dict[nn.Module, dict[str, int]] = field(default_factory=dict)
    calls: list[RecordedCall] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    taken: Tensor | None = None
    sample: Tensor | None = None
    repeatable: bool = True
    rowed: bool = False

    def split(self, region: Region) -> RecordedStep:
        """Return the step with its calls as `RecordedCall.split` and `fed` make them, each by its own region."""
        of = [region_beside(call.x, self.calls[0].x, region) for call in self.calls]
        return replace(self, calls=[call.split(own).fed() for call, own in zip(self.calls, of, strict=True)])

    def sign(self, region: Region) -> float | None:
        """Return -1.0 where the scheduler gets the prediction's opposite (Lumina, Z-Image), else 1.0; None = neither.

        Args:
            region: of the model's input, see `regions`.

        """
        if self.taken is None or not self.predictions:
            return 1.0
        if not self.repeatable:
            return None
        far = {sign: difference(sign * self.predictions[0], self.taken, region) for sign in (1.0, -1.0)}
        sign = min(far, key=lambda sign: far[sign])
        return sign if far[sign] < CLOSE else None

    def changed(self, prediction: Tensor, around: Preconditioning | None, region: Region) -> Tensor:
        """Return what the scheduler gets for a prediction at this step, under preconditioning a region of it."""
        if around is None:
            return prediction
        assert self.sample is not None, "preconditioning is read off samples"
        return around.outputs[0] * narrowed(prediction, region) + around.states[0] * narrowed(self.sample, region)

    def unconditional(self, alone: RecordedCall, places: Any) -> tuple[RecordedCall, Tensor, Tensor] | None:
        """Return a call of the unconditional branch, its prediction and the conditional one's, of a guided step.

        Args:
            alone: the call for the same prompt without guidance.
            places: see `conditions.places_of`.

        Returns:
            None where the step has not two branches, they cannot be told apart, or guidance brings conditions of its
            own (a mask of prompts of two lengths).

        """
        size = len(alone.x)
        if len(self.calls) == 2 and all(len(call.x) == size for call in self.calls):
            both = self.calls
            predictions = [
                narrowed(made, call.region) if both[0].apart_from(both[1]) else made
                for made, call in zip(self.predictions, both, strict=True)
            ]
        elif len(self.calls) == 1 and len(self.calls[0].x) == 2 * size:
            if not _placed(self.calls[0].conditions, places):
                return None
            both = self.calls[0].in_parts(places, 2)
            predictions = list(self.predictions[0].chunk(2))
        else:
            return None
        far = [distance(call.conditions, alone.conditions) for call in both]
        if far[0] == far[1]:
            return None
        uncond = far.index(max(far))
        own = both[uncond].apart_from(alone)
        made = both[uncond] if own else replace(alone, conditions=both[uncond].conditions)
        return made, predictions[uncond], predictions[1 - uncond]


def _placed(conditions: Any, places: Any) -> bool:
    """Return whether all conditions, nested ones too, have a place (`conditions.places_of`), and no others have."""
    if isinstance(places, Mapping):
        alike = set(conditions) == set(places)
        return alike and all(_placed(conditions[name], place) for name, place in places.items())
    if isinstance(places, (list, tuple)):
        return len(conditions) == len(places) and all(map(_placed, conditions, places))
    return True


def distance(ours: Any, theirs: Any) -> float:
    """Return how far apart two conditions are: a sum of differences, infinite for other shapes."""
    if isinstance(ours, Mapping):
        if set(ours) != set(theirs):
            return float("inf")
        return sum(distance(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, (list, tuple)):
        same = len(ours) == len(theirs)
        return sum(map(distance, ours, theirs)) if same else float("inf")
    if isinstance(ours, Tensor):
        same = isinstance(theirs, Tensor) and ours.shape == theirs.shape
        wide = torch.complex64 if ours.is_complex() else torch.float32  # rotary tables are complex
        return float((ours.to(wide) - theirs.to(wide)).abs().sum()) if same else float("inf")
    return 0.0 if ours == theirs else 1.0


@torch.no_grad()
def first_step(pipe: Any, models: Collection[nn.Module], **settings: Any) -> RecordedStep:
    """Call a pipeline up to the first step of its scheduler; its models run."""
    step = RecordedStep()
    taken_by = inspect.signature(pipe.scheduler.step)

    def record(*args: Any, **kwargs: Any) -> None:
        given = taken_by.bind(*args, **kwargs).arguments
        step.taken, step.sample = given.get("model_output"), given.get("sample")
        t = given.get("timestep")
        step.rowed = isinstance(t, Tensor) and t.shape == given["sample"].shape[:1]
        turned = _turned(pipe.scheduler, taken_by, given)
        step.repeatable = turned is not None
        step.taken = step.taken if turned is None or step.taken is None else turned * step.taken
        raise RecordedError

    unset = Unset(pipe)

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not unset:
            step.calls.append(replace(RecordedCall.of(module, args, kwargs), before=tuple(before)))

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not unset:
            step.predictions.append(first(output, listed=True))

    hooks = [model.register_forward_pre_hook(look, with_kwargs=True) for model in models]
    hooks += [model.register_forward_hook(keep) for model in models]
    pipe.scheduler.step = record
    try:
        with timed_calls(pipe, models) as before, _counting(models) as counts:
            ended(pipe, settings)
        step.runs = {model: _of_one_forward(of) for model, of in counts.items() if of}
    finally:
        for hook in hooks:
            hook.remove()
        del pipe.scheduler.step
    return step


def _turned(scheduler: Any, taken_by: inspect.Signature, given: Mapping[str, Any]) -> float | None:
    """Return the sign of the prediction with which a step needs none of its further arguments; None = neither has.

    Those of flow matching step each token from its own time to the next where they are given such, with the sign
    turned.
    """
    parameters = taken_by.parameters
    kept = {
        name: given[name] for name in given if name in USUAL or parameters[name].default is parameters[name].empty
    }
    if len(kept) == len(given):
        return 1.0

    def stepped(settings: Mapping[str, Any]) -> Tensor:
        return type(scheduler).step(copy.deepcopy(scheduler), **{**settings, "return_dict": False})[0]

    done = stepped(given)
    moved = done != given["sample"]
    for sign in (1.0, -1.0):
        plain = stepped({**kept, "model_output": sign * given["model_output"]})
        if torch.allclose(plain[moved], done[moved], rtol=1e-3, atol=1e-4):
            return sign
    return None


def difference(predicted: Tensor, taken: Tensor, region: Region = ()) -> float:
    """Return how far a scheduler's input is from a prediction, in units of its largest value; infinite if not alike.

    Variance, or a prediction of what lies beside the noisy input, may be left out. The scheduler may be given tokens
    as frames, or frames as a batch, which are the same values in another order; or one frame after the other.

    Args:
        predicted: the prediction (N, ...).
        taken: what the scheduler was given.
        region: of the model's input, see `regions`.

    """
    taken = taken.float()
    largest = taken.abs().max().clamp_min(torch.finfo(taken.dtype).tiny)
    pairs = _alike(predicted.float(), taken, region)
    return min((float((ours - theirs).abs().max() / largest) for ours, theirs in pairs), default=float("inf"))


def _alike(predicted: Tensor, taken: Tensor, region: Region) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ways in which a scheduler's input may be a prediction, as pairs of tensors that are equal then."""
    part = narrowed(predicted, region)
    if part.shape == narrowed(taken, region).shape:  # frames that stay may be given a prediction of their own
        yield part, narrowed(taken, region)
    for given in (predicted, part):
        if len(given) == len(taken) and given[0].numel() >= taken[0].numel():
            yield given.flatten(1)[:, : taken[0].numel()], taken.flatten(1)
        for axis in range(1, given.ndim):
            if given.select(axis, 0).shape == taken.shape:
                yield given.select(axis, 0), taken
    if part.numel() == taken.numel():
        yield part.flatten().sort().values, taken.flatten().sort().values
