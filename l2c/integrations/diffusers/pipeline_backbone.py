"""A diffusers pipeline as a backbone: policies and router training see x, t and the number of a prompt.

What a pipeline makes of a prompt is not repeated here but recorded: the pipeline is called once per prompt, up to the
first call of its model, whose arguments are kept. The text encoders are needed for nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Conventions
from l2c.backbones.digest import weights_digest
from l2c.backbones.wrap import WrappedModule
from l2c.integrations.diffusers import denoiser_of
from l2c.integrations.diffusers.layers import find_layers, make_layer
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver
from l2c.integrations.diffusers.timesteps import as_model_sees, timestep_of

PROMPTS = (
    "a photograph of a cat on a window sill",
    "a mountain lake at dawn",
    "a bowl of fruit, oil painting",
    "an old man reading a newspaper",
    "a red bicycle against a brick wall",
    "a city street in the rain at night",
    "a macro photograph of a dragonfly",
    "an astronaut riding a horse",
)
NUM_DEFAULT_LABELS = 8


class PipelineBackbone(WrappedModule):
    """The denoiser of a pipeline with the conditions of prompts; label i is prompt i, the last the empty one.

    Args:
        model: the transformer or U-Net.
        conditions: what it was called with beside x and t, for each prompt and for the empty one.
        solver: the pipeline's scheduler.
        input_shape: of one x.
        of: kinds of layers, see `find_layers`.
        fewer_steps: the scheduler at smaller numbers of steps, for samplers without a graph.
        embedded_guidance: whether the guidance scale is among the conditions, an input of the model.

    Attributes:
        own_solver: the solver that a sampler of this backbone uses.
        fewer_steps: see above.
        origin: a digest of conditions and scheduler, which decide with the weights what is drawn.

    """

    def __init__(
        self,
        model: nn.Module,
        conditions: Sequence[Mapping[str, Any]],
        solver: SchedulerSolver,
        input_shape: tuple[int, ...],
        *,
        of: tuple[str, ...] | None = None,
        fewer_steps: Mapping[int, SchedulerSolver] | None = None,
        embedded_guidance: bool = False,
    ) -> None:
        count = len(conditions) - 1
        super().__init__(
            model,
            [make_layer(model, name) for name in find_layers(model, of=of)],
            timestep="timestep",
            labels="prompt",
            conventions=Conventions(
                type(model).__name__, "linear", 0, "embedded" if embedded_guidance else "cfg", count
            ),
            input_shape=input_shape,
            num_embedded_labels=count + 1,
        )
        self.own_solver = solver
        self.fewer_steps = dict(fewer_steps or {})
        self._table = _stacked(conditions)
        self.origin = hashlib.sha256(f"{_digest(self._table)}{solver.name}{solver.timesteps}".encode()).hexdigest()

    def call(self, x: Tensor, t: Tensor, y: Tensor | None) -> Any:
        """Call the model as the pipeline does for prompts y (N,)."""
        if y is None:
            raise ValueError(f"{self.conventions.name} needs prompts: give y (N,) in 0..{self.num_labels}")
        return self.module(x, timestep=t, **_rows(self._table, y))


def pipeline_backbone(
    pipe: Any,
    prompts: Sequence[str] | Sequence[int],
    *,
    num_evaluations: int,
    guidance_scale: float | None = None,
    of: tuple[str, ...] | None = None,
    options: Mapping[str, Any] | None = None,
    fewer_steps: bool = False,
) -> PipelineBackbone:
    """Record what a pipeline makes of prompts, and return its denoiser as a backbone.

    Args:
        pipe: a diffusers pipeline.
        prompts: texts, or class labels for a class-conditional pipeline.
        num_evaluations: number of steps.
        guidance_scale: given to models that take it as an input (Flux); for the others guidance is the sampler's.
        of: kinds of layers, see `find_layers`.
        options: further arguments of the pipeline's call, `height` and `width` for example.
        fewer_steps: also look at the scheduler's steps for every smaller number of them, for the baseline of that
            name.

    Raises:
        ValueError: no prompts, prompts of different lengths, or a scheduler that a graph cannot follow.

    """
    if not prompts:
        raise ValueError("no prompts given; one at least is needed")
    model = denoiser_of(pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    by_class = "class_labels" in parameters
    empty: Any = model.config.num_embeds_ada_norm if by_class else ""
    distilled = bool(getattr(model.config, "guidance_embeds", False))
    settings: dict[str, Any] = {"num_inference_steps": num_evaluations, **(options or {})}
    if "guidance_scale" in parameters:
        settings["guidance_scale"] = guidance_scale if distilled and guidance_scale is not None else 1.0
    calls = [
        _recorded(pipe, model, **{"class_labels" if by_class else "prompt": [prompt]}, **settings)
        for prompt in (*prompts, empty)
    ]
    timesteps = as_model_sees(pipe.scheduler.timesteps, calls[0].t, pipe.scheduler)
    solver = SchedulerSolver(pipe.scheduler, timesteps)
    given = {**settings, "class_labels" if by_class else "prompt": [prompts[0]]}
    return PipelineBackbone(
        model,
        [call.conditions for call in calls],
        solver,
        tuple(calls[0].x.shape[1:]),
        of=of,
        fewer_steps=_fewer_steps(pipe, model, given) if fewer_steps else None,
        embedded_guidance=distilled,
    )


def _fewer_steps(pipe: Any, model: nn.Module, settings: Mapping[str, Any]) -> dict[int, SchedulerSolver]:
    """Return the pipeline's scheduler at 2 steps and on, fewer than its settings say; the prompt is encoded once."""
    found: dict[int, SchedulerSolver] = {}
    with _encoding_once(pipe):
        for count in range(2, settings["num_inference_steps"]):
            call = _recorded(pipe, model, **{**settings, "num_inference_steps": count})
            timesteps = as_model_sees(pipe.scheduler.timesteps, call.t, pipe.scheduler)
            with contextlib.suppress(ValueError):  # steps that a graph could not follow: no baseline at this number
                found[count] = SchedulerSolver(pipe.scheduler, timesteps)
    return found


@contextlib.contextmanager
def _encoding_once(pipe: Any) -> Iterator[None]:
    """Let a pipeline's text encoders run once for arguments that they get again."""
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        yield
        return
    known: dict[str, Any] = {}

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, kwargs))
        if key not in known:
            known[key] = encode(*args, **kwargs)
        return known[key]

    pipe.encode_prompt = encode_once
    try:
        yield
    finally:
        del pipe.encode_prompt


def read_pipeline(settings: Mapping[str, Any]) -> Any:
    """Return a saved pipeline; see `load_pipeline` for settings and errors."""
    from diffusers import DiffusionPipeline

    if settings.get("prompts") is not None:
        _prompt_lines(settings["prompts"])  # before gigabytes of weights are read
    pipe = DiffusionPipeline.from_pretrained(settings["pipeline"], dtype=getattr(torch, settings["dtype"]))
    pipe.set_progress_bar_config(disable=True)
    pipe.to(settings["device"])
    return pipe


def load_pipeline(
    settings: Mapping[str, Any], *, num_evaluations: int, guidance_scale: float | None, fewer_steps: bool = False
) -> Any:
    """Return the backbone of a saved pipeline; its text encoders run once per prompt and are freed.

    Args:
        settings: `pipeline` (a folder or a name on the Hub), `prompts` (a text file or None), `layers` (kinds or
            None), `dtype`, `device`, `options` of the pipeline's call.
        num_evaluations: number of steps.
        guidance_scale: see `pipeline_backbone`.
        fewer_steps: likewise.

    Raises:
        ValueError: an empty prompt file, a label out of range.
        OSError: there is no such pipeline or file.

    """
    pipe = read_pipeline(settings)
    of = settings.get("layers")
    return pipeline_backbone(
        pipe,
        read_prompts(settings.get("prompts"), pipe),
        num_evaluations=num_evaluations,
        guidance_scale=guidance_scale,
        of=None if of is None else tuple(of),
        options=settings.get("options"),
        fewer_steps=fewer_steps,
    )


def read_prompts(path: str | None, pipe: Any) -> list[Any]:
    """Return the lines of a file as prompts, or as class labels where the pipeline takes those; None = a few of ours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a line is no label of the model.

    """
    by_class = "class_labels" in inspect.signature(pipe.__call__).parameters
    num_classes = denoiser_of(pipe).config.num_embeds_ada_norm if by_class else 0
    if path is None:
        step = max(1, num_classes // NUM_DEFAULT_LABELS)
        return list(range(0, num_classes, step))[:NUM_DEFAULT_LABELS] if by_class else list(PROMPTS)
    lines = _prompt_lines(path)
    if not by_class:
        return lines
    wrong = [line for line in lines if not line.isdigit() or int(line) >= num_classes]
    if wrong:
        raise ValueError(
            f"{path}: {wrong[0]!r} is no class label; this pipeline takes 0..{num_classes - 1}, one a line"
        )
    return [int(line) for line in lines]


def _prompt_lines(path: str) -> list[str]:
    """Return the lines of a file that say something; refuse a file without any."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no prompt file at {path}; write one prompt (or class label) a line")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"the prompt file {path} is empty; write one prompt (or class label) a line")
    return lines


@dataclass(frozen=True)
class _Call:
    """The first call of a pipeline's model."""

    x: Tensor
    t: float
    conditions: dict[str, Any]


class _RecordedError(Exception):
    """Ends a pipeline's call once its model was called."""


def _recorded(pipe: Any, model: nn.Module, **settings: Any) -> _Call:
    calls: list[_Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
        t = timestep_of(module, args, kwargs)
        x = given.pop(next(iter(given)))
        given.pop("timestep")
        calls.append(_Call(x, t, {key: value for key, value in given.items() if value is not None}))
        raise _RecordedError

    hook = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        pipe(**settings)
    except _RecordedError:
        return calls[0]
    finally:
        hook.remove()
    raise ValueError(f"{type(pipe).__name__} ended without calling its {type(model).__name__}")


def _digest(table: Any) -> str:
    """Return a digest of conditions."""
    if isinstance(table, Mapping):
        return str({key: _digest(value) for key, value in table.items()})
    if isinstance(table, _PerPrompt):
        table = table.rows
    if isinstance(table, Tensor):
        return weights_digest({"": table})
    return str(table)


@dataclass(frozen=True)
class _PerPrompt:
    """A condition with one row per prompt."""

    rows: Tensor


def _stacked(values: Sequence[Any]) -> Any:
    """Return conditions of single prompts as one table; what has no row of its own is the first prompt's."""
    head = values[0]
    if isinstance(head, Mapping):
        return {key: _stacked([value[key] for value in values]) for key in head}
    if not isinstance(head, Tensor) or head.ndim == 0 or len(head) != 1:
        return head
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"the prompts become tensors of different shapes {sorted(shapes)}; let the pipeline pad them (options)"
        )
    return _PerPrompt(torch.cat(list(values)))


def _rows(table: Any, y: Tensor) -> Any:
    if isinstance(table, Mapping):
        return {key: _rows(value, y) for key, value in table.items()}
    if isinstance(table, _PerPrompt):
        return table.rows.to(y.device)[y]
    return table.to(y.device) if isinstance(table, Tensor) else table
