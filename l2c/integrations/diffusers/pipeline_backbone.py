"""A diffusers pipeline as a backbone: policies and router training see x, t and the number of a prompt.

What a pipeline makes of a prompt is not repeated here but recorded: the pipeline is called once per prompt, up to the
first call of its model, whose arguments are kept. The text encoders are needed for nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Conventions
from l2c.backbones.digest import weights_digest
from l2c.backbones.layer_cache import Pass
from l2c.backbones.wrap import WrappedModule
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers.conditions import differ_in_length, digest_of, rows_of, tabled
from l2c.integrations.diffusers.denoisers import denoiser_of, denoisers_of
from l2c.integrations.diffusers.graphs import CacheGraphs
from l2c.integrations.diffusers.layers import find_layers, make_layer
from l2c.integrations.diffusers.prompts import by_class, prompt_lines, read_prompts
from l2c.integrations.diffusers.recording import FirstStep, RecordedCall, first_step, prediction_of, recorded_call
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver
from l2c.integrations.diffusers.timesteps import as_model_sees
from l2c.io.memory import out_of_memory
from l2c.io.names import check_folder_or_hub


class PipelineBackbone(WrappedModule):
    """The denoiser of a pipeline with the conditions of prompts; label i is prompt i, the last the empty one.

    Args:
        model: the transformer or U-Net.
        calls: calls of the model, for each prompt and for the empty one.
        step: the first step of the trajectory of the first prompt.
        solver: the pipeline's scheduler.
        of: kinds of layers, see `find_layers`.
        fewer_steps: the scheduler at smaller numbers of steps, for samplers without a graph.
        guidance: what the guidance scale means: `cfg`, `uvit`, or `embedded`, an input of the model.
        second: a denoiser of the same architecture, and the t below which it takes the first one's place.

    Attributes:
        own_solver: the solver that a sampler of this backbone uses.
        fewer_steps: see above.
        origin: a digest of conditions and scheduler, which decide with the weights what is drawn.

    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[RecordedCall],
        step: FirstStep,
        solver: SchedulerSolver,
        *,
        of: tuple[str, ...] | None = None,
        fewer_steps: Mapping[int, SchedulerSolver] | None = None,
        guidance: str = "cfg",
        second: tuple[nn.Module, float] | None = None,
    ) -> None:
        count = len(calls) - 1
        super().__init__(
            model,
            [make_layer(model, name) for name in find_layers(model, of=of, calls=step.calls)],
            timestep=calls[0].time[-1],
            labels="prompt",
            conventions=Conventions(type(model).__name__, "linear", 0, guidance, count),
            input_shape=tuple(calls[0].x.shape[1:]),
            num_embedded_labels=count + 1,
        )
        self.own_solver = solver
        self.fewer_steps = dict(fewer_steps or {})
        self._recorded = calls[0]
        self.second = None if second is None else second[0].eval().requires_grad_(False)
        self._second_layers = (
            () if self.second is None else tuple(make_layer(self.second, name) for name in self.layer_names)
        )
        self.boundary = -float("inf") if second is None else second[1]
        self._sign = step.sign
        self._table = tabled([call.conditions for call in calls])
        self.origin = hashlib.sha256(f"{digest_of(self._table)}{solver.name}{solver.timesteps}".encode()).hexdigest()

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict by the denoiser whose time it is; see `WrappedModule.run`."""
        with self._lock, self._at(condition[0]):
            return super().run(x, condition, layers)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict, computing every layer, by the denoiser whose time it is."""
        with self._lock, self._at(t):
            return super().forward(x, t, y)

    @contextlib.contextmanager
    def _at(self, t: Tensor) -> Iterator[None]:
        """Replace the first denoiser by the second in a `with` block, where t (N,) lies below its boundary."""
        if self.second is None or float(t.reshape(-1)[0]) >= self.boundary:
            yield
            return
        own = self.module, self.layers
        self.module, self.layers = self.second, self._second_layers
        try:
            yield
        finally:
            self.module, self.layers = own

    @property
    def lengths_differ(self) -> bool:
        """Whether the conditions of prompts, the empty one among them, have different lengths."""
        return differ_in_length(self._table)

    def call(self, x: Tensor, t: Tensor, y: Tensor | None) -> Any:
        """Call the model as the pipeline does for prompts y (N,)."""
        if y is None:
            raise ValueError(f"{self.conventions.name} needs prompts: give y (N,) in 0..{self.num_labels}")
        given = self._recorded.arguments(x, t, rows_of(self._table, y))
        predicted = prediction_of(self.module(**given))
        return predicted if self._sign == 1.0 else self._sign * predicted


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
        ValueError: if there are no prompts, their lengths differ, or a graph cannot follow the scheduler.

    """
    if not prompts:
        raise ValueError("no prompts given; one at least is needed")
    model = denoiser_of(pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    labels = by_class(pipe)
    empty: Any = model.config.num_embeds_ada_norm if labels else ""
    distilled = bool(getattr(model.config, "guidance_embeds", False))
    settings: dict[str, Any] = {"num_inference_steps": num_evaluations, **(options or {})}
    if "guidance_scale" in parameters:
        settings["guidance_scale"] = guidance_scale if distilled and guidance_scale is not None else _off(pipe)
    name = "class_labels" if labels else "prompt"
    given = {**settings, name: [prompts[0]]}
    with _encoding_once(pipe):
        step = first_step(pipe, model, **given)
        calls = [recorded_call(pipe, model, **{name: [prompt]}, **settings) for prompt in (*prompts, empty)]
        timesteps = as_model_sees(pipe.scheduler.timesteps, calls[0].t, pipe.scheduler)
        solver = SchedulerSolver(pipe.scheduler, timesteps)
        fewer = _fewer_steps(pipe, model, given) if fewer_steps else None
    return PipelineBackbone(
        model,
        calls,
        step,
        solver,
        of=of,
        fewer_steps=fewer,
        guidance="embedded" if distilled else "cfg" if _off(pipe) == 1.0 else "uvit",
        second=_second(pipe, solver),
    )


def _off(pipe: Any) -> float:
    """Return the guidance scale at which a pipeline runs no second branch.

    It is 1.0 for `uncond + s (cond - uncond)`, and 0.0 for `cond + s (cond - uncond)` (Z-Image).
    """
    before = getattr(pipe, "_guidance_scale", None)
    pipe._guidance_scale = 1.0
    try:
        return 0.0 if getattr(pipe, "do_classifier_free_guidance", False) else 1.0
    finally:
        pipe._guidance_scale = before


def _second(pipe: Any, solver: SchedulerSolver) -> tuple[nn.Module, float] | None:
    """Return a pipeline's second denoiser and the t below which it is called; None where there is one alone."""
    models = list(denoisers_of(pipe).values())
    if len(models) == 1:
        return None
    ratio = getattr(pipe.config, "boundary_ratio", None)
    if ratio is None:
        raise ValueError(
            f"{type(pipe).__name__} has two denoisers but no boundary_ratio, so that the time of each is not known; "
            "calibrate each on a pipeline of its own"
        )
    training = float(pipe.scheduler.config.num_train_timesteps)
    return models[1], ratio * (training if max(solver.timesteps) > 1 else 1.0)


def graphs_of(graph: CacheGraph, pipe: Any) -> CacheGraph | CacheGraphs:
    """Return a graph of a whole trajectory as the pipeline needs it: for two denoisers, the part of each.

    The second one's first evaluation computes everything.
    """
    models = denoisers_of(pipe)
    if len(models) == 1:
        return graph
    boundary = _second(pipe, SchedulerSolver(pipe.scheduler, graph.timesteps))
    assert boundary is not None
    first, second = models
    start = sum(t >= boundary[1] for t in graph.timesteps)
    parts: dict[str, CacheGraph] = {}
    for name, part in ((first, slice(0, start)), (second, slice(start, None))):
        chosen = range(graph.num_evaluations)[part]
        if not chosen:
            raise ValueError(f"{type(pipe).__name__} calls its {name} at none of {len(graph.rows)} steps; take more")
        digest = graph.fingerprint if name == first else weights_digest(models[name].state_dict())
        parts[name] = with_evaluations(graph, chosen, fingerprint=digest)
    return CacheGraphs(parts)


def _fewer_steps(pipe: Any, model: nn.Module, settings: Mapping[str, Any]) -> dict[int, SchedulerSolver]:
    """Return the pipeline's scheduler at 2 steps and on, fewer than its settings say; the prompt is encoded once."""
    found: dict[int, SchedulerSolver] = {}
    for count in range(2, settings["num_inference_steps"]):
        call = recorded_call(pipe, model, **{**settings, "num_inference_steps": count})
        timesteps = as_model_sees(pipe.scheduler.timesteps, call.t, pipe.scheduler)
        with contextlib.suppress(ValueError):  # steps that a graph could not follow: no baseline at this number
            found[count] = SchedulerSolver(pipe.scheduler, timesteps)
    return found


@contextlib.contextmanager
def _encoding_once(pipe: Any) -> Iterator[None]:
    """Make a pipeline's text encoders run once for repeated arguments."""
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
        prompt_lines(settings["prompts"])  # before gigabytes of weights are read
    check_folder_or_hub("pipeline", settings["pipeline"])
    pipe = DiffusionPipeline.from_pretrained(settings["pipeline"], dtype=getattr(torch, settings["dtype"]))
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe.to(settings["device"])
    except (RuntimeError, AssertionError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"there is no device {settings['device']!r} here; say model.device=cpu") from error
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
        ValueError: if the prompt file is empty, or a label is out of range.
        OSError: if there is no such pipeline or file.

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
