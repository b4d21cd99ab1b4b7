"""A diffusers pipeline as a backbone: policies and router training see x, t and the number of a prompt.

The conditions of a prompt are recorded, not computed here: the pipeline is called once per prompt, up to the first
call of its model, whose arguments are kept. The text encoders are not needed afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone, Conventions, class_name
from l2c.backbones.layer_cache import LayerCache, LayerOutput, Pass, Row
from l2c.backbones.layer_form import first
from l2c.backbones.parts import alike, in_order, part_of
from l2c.backbones.whole_output import under_layers
from l2c.backbones.wrap import WrappedModule
from l2c.graph.binding import NEUTRAL_SCALE
from l2c.graph.layer_names import WHOLE_OUTPUT, kinds_asked
from l2c.integrations.diffusers.adapters import effective_weights
from l2c.integrations.diffusers.denoisers import check_apart, denoisers_of, without_wrappers
from l2c.integrations.diffusers.guidance import check_inside, defaults_of, guidance_of
from l2c.integrations.diffusers.layers import find_layers, make_layer
from l2c.integrations.diffusers.options import PER_PROMPT
from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.conditions import (
    differ_in_length,
    digest_of,
    groups_of,
    rows_of,
    tabled,
)
from l2c.integrations.diffusers.recorded.encoders import encoding_once
from l2c.integrations.diffusers.recorded.own_call import OwnCall, own_call, with_scales
from l2c.integrations.diffusers.recorded.recording import LEFT_OUT, Recording, record
from l2c.integrations.diffusers.recorded.regions import narrowed
from l2c.integrations.diffusers.recorded.solvers import solvers_of
from l2c.integrations.diffusers.recorded.turns import Turns
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver

log = logging.getLogger(__name__)


class PipelineBackbone(WrappedModule):
    """The denoiser of a pipeline with the conditions of prompts; label i is prompt i, the last the unconditional one.

    Prompts whose conditions differ in length are never put into one batch: their rows run apart. What is kept of a
    layer is then flat, (N, M), shorter ones filled with zeros.

    Args:
        model: the transformer or U-Net.
        recording: what the pipeline makes of the prompts.
        solver: the pipeline's scheduler.
        of: kinds of layers, see `find_layers`; `output`: none, for `WholeOutput`.
        fewer_steps: the scheduler at smaller numbers of steps, for samplers without a graph.
        guidance: what the guidance scale means: `cfg`, `cfg_normed`, `uvit`, or `embedded`, an input of the
            model.
        called: the pipeline's call with these settings; None = not known.
        turns: which denoisers make which evaluations; None = the model makes all.

    Attributes:
        turns: which denoisers make which evaluations.
        first_model: the one whose weights are the backbone's.
        own_solver: the solver that a sampler of this backbone uses.
        own_call: the pipeline's call.
        fewer_steps: the scheduler at smaller numbers of steps.
        origin: a digest of conditions and scheduler, which decide with the weights what is drawn.

    """

    def __init__(
        self,
        model: nn.Module,
        recording: Recording,
        solver: SchedulerSolver,
        *,
        of: tuple[str, ...] | None = None,
        fewer_steps: Mapping[int, SchedulerSolver] | None = None,
        guidance: str = "cfg",
        called: OwnCall | None = None,
        turns: Turns | None = None,
    ) -> None:
        calls = recording.calls
        count, called = len(calls) - 1, OwnCall() if called is None else called
        names = () if of == (WHOLE_OUTPUT,) else find_layers(model, of=of, calls=recording.runs)
        super().__init__(
            model,
            [make_layer(model, name) for name in names],
            timestep=calls[0].time[-1],
            labels="prompt",
            conventions=Conventions(
                class_name(model), "linear", 0, guidance, count, guidance_options=called.guided_by
            ),
            input_shape=tuple(calls[0].x.shape[1:]),
            num_embedded_labels=count + 1,
        )
        self.own_solver, self.own_call = solver, called
        self.usual_time = solver.timesteps[0]
        self.fewer_steps = dict(fewer_steps or {})
        self._recorded = calls[0]
        for feeder in (*calls[0].feeders, *calls[-1].feeders):
            feeder.module.eval().requires_grad_(False)
        self.first_model, self.turns = model, Turns({"": model}) if turns is None else turns
        others = [other.eval().requires_grad_(False) for other in self.turns.models.values() if other is not model]
        self.scale_at, self._layers_of = self.turns.scale_at, {model: self.layers}
        self._layers_of |= {other: tuple(make_layer(other, name) for name in self.layer_names) for other in others}
        self._sign = recording.sign
        self._none = calls[-1] if calls[-1].apart_from(calls[0]) else None
        own = calls if self._none is None else calls[:-1]
        self._table = tabled([call.conditions for call in own], recording.places)
        self._table_of_none = tabled([calls[-1].conditions], recording.places_of_none)
        self.lengths_differ = self._none is not None or differ_in_length(self._table)
        self._shapes_of: dict[Any, dict[int, tuple[int, ...]]] = {}  # of layers' outputs, of each length of prompts
        given = digest_of(self._table) + ("" if self._none is None else digest_of(self._table_of_none))
        self.origin = hashlib.sha256(f"{given}{solver.name}{solver.timesteps}".encode()).hexdigest()

    @property
    def dtype(self) -> torch.dtype:
        """The type of an input: what the model computes in, where weights are of several types or stored as fp8."""
        own = getattr(self.module, "dtype", None)
        return own if isinstance(own, torch.dtype) else super().dtype

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights that count, see `effective_weights`."""
        return effective_weights(self.module)

    def modules_in_turn(self) -> list[nn.Module]:
        """Return the one denoiser, or all of several."""
        return list(self._layers_of)

    def parts(self, y: Tensor | None) -> list[Tensor] | None:
        """Return the rows of prompts y (N,) that may run together, see `Backbone.parts`."""
        if y is None or not self.lengths_differ:
            return None
        return [torch.tensor(places, device=y.device) for places in self._groups(y).values()]

    def _groups(self, y: Tensor) -> dict[Any, list[int]]:
        """Return the places in a batch of prompts y (N,) that may run together, by what they have in common."""
        prompts, none = y.tolist(), self.num_embedded_labels - 1
        if self._none is None:
            return groups_of(self._table, prompts)
        groups: dict[Any, list[int]] = {}
        for apart in (False, True):
            chosen = [place for place, prompt in enumerate(prompts) if (prompt == none) is apart]
            table = self._table_of_none if apart else self._table
            alike = groups_of(table, [0 if apart else prompts[place] for place in chosen])
            groups |= {(apart, key): [chosen[i] for i in places] for key, places in alike.items()}
        return groups

    def _apart(self, y: Tensor) -> RecordedCall | None:
        """Return the call that the unconditional branch has for itself if y (N,) are its rows."""
        return self._none if int(y[0]) == self.num_embedded_labels - 1 else None

    def _recorded_of(self, y: Tensor) -> tuple[RecordedCall, Any, Tensor]:
        """Return the recorded call of prompts y (N,), the table of its conditions, and their rows in it."""
        apart = self._apart(y)
        return (
            (self._recorded, self._table, y) if apart is None else (apart, self._table_of_none, torch.zeros_like(y))
        )

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict by the denoiser whose time it is; see `WrappedModule.run`.

        Raises:
            ValueError: if the batch holds prompts of different lengths, see `parts`.

        """
        with self._lock, self._at(*condition):
            if self.lengths_differ and len(self._groups(condition[1])) > 1:
                raise ValueError(
                    "prompts of different lengths cannot run in one pass; give one prompt at a time, without a "
                    "guidance scale, or let the pipeline pad them (options)"
                )
            return super().run(x, condition, layers)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict, computing every layer, by the denoiser whose time it is."""
        parts = None if y is None else self.parts(y)
        with self._lock:
            if parts is None or y is None:
                return self._whole(x, t, y)
            return in_order(parts, [self._whole(x[rows], t[rows], y[rows]) for rows in parts])

    def _whole(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        with self._at(t, y):
            return super().forward(x, t, y)

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        row: Row,
        cache: Sequence[LayerOutput] | None = None,
        keep: Sequence[bool] | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """Predict with some layers reused; see `Backbone.forward_cached`."""
        parts = self.parts(y)
        if parts is None or y is None:
            return super().forward_cached(x, t, y, row, cache, keep)
        outputs, kept = [], []
        for length, rows in zip(self._groups(y), parts, strict=True):
            own = self._shapes_of.setdefault(length, {})
            given = (
                None
                if cache is None
                else [c if c is None else part_of(c, rows, own.get(i)) for i, c in enumerate(cache)]
            )
            output, layers = super().forward_cached(x[rows], t[rows], y[rows], row, given, keep)
            own |= {i: tuple(layer.shape[1:]) for i, layer in enumerate(layers) if layer is not None}
            outputs.append(output)
            kept.append(layers)
        whole = (None if layer[0] is None else in_order(parts, alike(layer)) for layer in zip(*kept, strict=True))
        return in_order(parts, outputs), tuple(whole)

    @contextlib.contextmanager
    def _at(self, t: Tensor, y: Tensor | None = None) -> Iterator[None]:
        """Let the denoiser of t (N,) and of y (N,), rows that may run together, be the module in a `with` block."""
        model: Any = self.first_model
        if len(self._layers_of) > 1:
            apart = None if y is None else self._apart(y)
            model = self.turns.at(float(t.reshape(-1)[0])) if apart is None else apart.model
        if model is self.module:
            yield
            return
        own = self.module, self.layers
        self.module, self.layers = model, self._layers_of[model]
        try:
            yield
        finally:
            self.module, self.layers = own

    def call(self, x: Tensor, t: Tensor, y: Tensor | None) -> Any:
        """Call the model as the pipeline does for prompts y (N,)."""
        if y is None:
            raise ValueError(f"{self.conventions.name} needs prompts: give y (N,) in 0..{self.num_labels}")
        recorded, table, rows = self._recorded_of(y)
        given = recorded.arguments(x, t, rows_of(table, rows))
        predicted = narrowed(first(self.module(**given), listed=True), recorded.region)
        return predicted if self._sign == 1.0 else self._sign * predicted

    def moving(self, x: Tensor) -> Tensor:
        """Return the part of the model's input, or of its prediction, that moves: what lies beside it is left out."""
        return narrowed(x, self._recorded.region)


def pipeline_backbone(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    num_evaluations: int,
    guidance_scale: float | None = None,
    of: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    fewer_steps: bool = False,
) -> Backbone:
    """Record what a pipeline makes of prompts, and return its denoiser as a backbone.

    Args:
        pipe: a diffusers pipeline.
        prompts: texts; class labels or pictures for a pipeline that takes those.
        num_evaluations: number of steps.
        guidance_scale: given to models that take it as an input (Flux); for the others guidance is the sampler's.
        of: kinds of layers, see `find_layers`; None = the usual ones, or the whole output where a model has none.
        options: further arguments of the pipeline's call, `height` and `width` for example.
        fewer_steps: also read the scheduler's steps for every smaller number of steps, for the baseline of that name.

    Raises:
        ValueError: if there are no prompts, or a graph cannot follow the scheduler.

    """
    if not prompts:
        raise ValueError("no prompts given; one at least is needed")
    asked, options = kinds_asked(of), options or {}
    check_inside(pipe, {**defaults_of(pipe), **options})
    denoisers_of(pipe)  # refuses a pipeline without
    with without_wrappers(pipe):
        return _read(pipe, prompts, num_evaluations, guidance_scale, asked, options, fewer_steps=fewer_steps)


def _read(
    pipe: Any,
    prompts: Sequence[Any],
    num_evaluations: int,
    guidance_scale: float | None,
    asked: tuple[str, ...] | None,
    options: Mapping[str, Any],
    *,
    fewer_steps: bool,
) -> Backbone:
    """Return a pipeline's denoiser as a backbone; see `pipeline_backbone`."""
    guidance = guidance_of(pipe)
    settings: dict[str, Any] = {"num_inference_steps": num_evaluations, **options}
    settings |= {**guidance.off, **guidance.single}
    settings |= {name: 1 for name in settings if re.fullmatch(PER_PROMPT, name)}
    if guidance.mode == "embedded":
        settings |= guidance.arguments(guidance_scale)
    if beside := guidance.left_out({**defaults_of(pipe), **options}):
        log.warning(LEFT_OUT, type(pipe).__name__, ", ".join(f"{name}={value:g}" for name, value in beside.items()))
    with encoding_once(pipe):
        with guidance.at(NEUTRAL_SCALE.get(guidance.mode, 1.0)):
            recording = record(pipe, prompts, guidance, **settings)
            solver, fewer, turns = solvers_of(pipe, recording, fewer_steps=fewer_steps)
        own = own_call(pipe, recording.model, guidance, guidance_scale, recording.given, options)
    turns = with_scales(pipe, turns, guidance, guidance_scale, own.guided_by)
    recording = recording if asked == (WHOLE_OUTPUT,) else recording.of_what_moves()
    asked = _kinds(recording.model, asked, recording, turns)
    off = guidance_scale == NEUTRAL_SCALE.get(guidance.mode)  # in the pipeline's own terms
    if recording.own_way is not None and not off:
        log.warning(recording.own_way)
    backbone = PipelineBackbone(
        recording.model,
        recording,
        solver,
        of=asked,
        fewer_steps=fewer,
        guidance=guidance.mode if off else recording.guidance or guidance.mode,
        called=own,
        turns=turns,
    )
    return under_layers(backbone, asked or ())


def _kinds(
    model: nn.Module, of: tuple[str, ...] | None, recording: Recording, turns: Turns
) -> tuple[str, ...] | None:
    """Return the kinds of layers asked for; the whole output where none were and a model has no usual ones.

    Raises:
        ValueError: if a layer that is asked for is another network's too, or there is none.

    """
    try:
        names = () if of == (WHOLE_OUTPUT,) else find_layers(model, of=of, calls=recording.runs)
        feeders = {type(f.module).__name__: f.module for call in recording.calls[:1] for f in call.feeders}
        layers = {name: [make_layer(own, layer).module for layer in names] for name, own in turns.models.items()}
        check_apart(layers, {**turns.models, **feeders})
    except ValueError as error:
        if of is not None:
            raise
        log.warning("%s; its whole output is taken as the one layer", str(error).partition(";")[0])
        return (WHOLE_OUTPUT,)
    return of
