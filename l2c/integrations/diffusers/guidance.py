"""How a pipeline's call is guided: which argument holds the scale, what it means, which arguments switch it off."""

from __future__ import annotations

import inspect
import logging
import math
import numbers
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from l2c.backbones.backbone import class_name
from l2c.graph.binding import NEUTRAL_SCALE
from l2c.integrations.diffusers.adapters import scales_in
from l2c.integrations.diffusers.denoisers import denoiser_of, of_another
from l2c.integrations.diffusers.prompts import array_of, digest_of_array

TRUE, EMBEDDED, OF_PICTURES = "true_cfg_scale", "guidance_scale", "image_guidance_scale"
NEGATIVE = ("negative_prompt", "negative_prompt_embeds")
BESIDE = {  # of further branches, where off: perturbed or own attention, skipped blocks, sound, pictures
    **dict.fromkeys(("pag_scale", "sag_scale", "stg_scale", "audio_stg_scale"), 0.0),
    **dict.fromkeys(("audio_guidance_scale", "modality_scale", "audio_modality_scale"), 1.0),
    OF_PICTURES: 1.0,
}
SCHEDULE = "guidance_schedule"  # a scale for each step, in the place of one
SCHEDULED = "%s is guided by a scale for each step; it is calibrated at that of the first one, %g"
GUIDING = re.compile(
    r"(?<![a-z])(cfg|guid\w*|pag|sag|seg|sld|stg|edit|modality|rescale)(?![a-z])"
)  # in arguments' names
NOT_GUIDING = re.compile(r"control_\w+|\w+_(latents|positions|strength|prompt\w*)|input_frames_guidance")  # but these
MOST = 4096  # numbers of one argument that are compared one by one
log = logging.getLogger(__name__)
INSIDE = ("sag_scale",)  # of branches that are made from attention maps, which the pipeline reads inside its model

STORES = re.compile(r"(?i)attn_?store|store_?proc|attention_(store|probs|maps)")  # in names of what keeps maps


@dataclass(frozen=True)
class PipelineGuidance:
    """Guidance of a pipeline's call.

    Attributes:
        mode: `cfg`: uncond + s (cond - uncond); `uvit`: cond + s (cond - uncond); `embedded`: s is an input of the
            model.
        argument: the argument of the call that takes s; None = there is no single one.
        off: arguments with which a call makes no unconditional pass.
        on: arguments that a call needs for one beside s.
        guider: the pipeline's component that holds s instead (HunyuanVideo 1.5); None = there is none.
        single: arguments with which a call takes one scale in the place of one for each step (Ideogram 4).

    """

    mode: str
    argument: str | None
    off: Mapping[str, Any] = field(default_factory=dict)
    on: Mapping[str, Any] = field(default_factory=dict)
    guider: Any = None
    single: Mapping[str, Any] = field(default_factory=dict)

    @property
    def branches(self) -> bool:
        """Whether a call at some scale makes two passes of the model."""
        return self.mode != "embedded" and (self.argument is not None or self.guider is not None)

    @contextmanager
    def at(self, scale: float) -> Iterator[dict[str, Any]]:
        """Yield the argument of calls at a scale in a `with` block, for whose time the guider has it too."""
        if self.guider is None:
            yield {} if self.argument is None else {self.argument: scale, **self.single}
            return
        before, self.guider.guidance_scale = self.guider.guidance_scale, scale
        try:
            yield {}
        finally:
            self.guider.guidance_scale = before

    def arguments(self, scale: float | None) -> dict[str, Any]:
        """Return the arguments of a call at a scale; None = as the pipeline has it."""
        if scale is None or self.argument is None:
            return {}
        on = {} if self.mode == "embedded" else self.on
        return {**on, self.argument: scale, **self.single}

    def left_out(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the scales of a call with these arguments whose further branches `off` leaves out."""
        beside = {name: call.get(name) for name in self.off if name != self.argument}
        beside = {name: scale for name, scale in beside.items() if not self._unmet(name, call)}
        return {name: scale for name, scale in beside.items() if scale is not None and scale > self.off[name]}

    def options_of(self, pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call beside its scale that say how it is guided, by name, as `graph` keeps them.

        A second denoiser's scale is one of them; what has no effect in the call is as if it were off. Of a guider its
        settings count. A scale of all adapters is among them, by which `scale_beside` reads their weights.

        Args:
            pipe: the pipeline.
            call: arguments of its call, as they stand when the model is called.

        """
        if self.guider is not None:
            own = {name: value for name, value in dict(self.guider.config).items() if not name.startswith("_")}
            own = {f"guider.{name}": value for name, value in own.items() if name != "guidance_scale"}
            return {"guider": type(self.guider).__name__, **{name: _kept(value) for name, value in own.items()}}
        steady = {TRUE, EMBEDDED} if TRUE in (self.argument, *self.off) else set()
        found: dict[str, Any] = {}
        for name in defaults_of(pipe):
            guides = GUIDING.search(name) and not NOT_GUIDING.fullmatch(name) and not of_another(pipe, name)
            if name in call and guides and name != self.argument and (name not in steady or name in self.off):
                found[name] = _kept(self.off[name] if self._unmet(name, call) else call[name])
        for name in self.single:
            if not isinstance(found.get(name), list) or len(set(found[name])) < 2:
                found.pop(name, None)  # one scale, which `scale_of` gives
        return {**found, **scales_in(call)}

    def scale_of(self, call: Mapping[str, Any]) -> float | None:
        """Return the scale that counts in a call with these arguments; the neutral one where guidance is off.

        Of a scale for each step it is that of the first one.
        """
        if self.guider is not None:
            return self.guider.guidance_scale if self.guider._enabled else NEUTRAL_SCALE[self.mode]
        scale = None if self.argument is None else call.get(self.argument)
        if scale is None and self._schedule(call) is not None:
            scale = float(self._schedule(call)[0])
        if self.mode == "embedded" or self.argument is None:
            return scale
        neutral = NEUTRAL_SCALE[self.mode]
        off = scale is None or scale <= neutral or (self.on and not negative(call))
        return neutral if off else scale

    def asked(self, pipe: Any, options: Mapping[str, Any], scale: float | None = None) -> float | None:
        """Return the scale that counts in a call with these options; None = theirs, or the pipeline's.

        Raises:
            ValueError: if a scale is given that the call does not take.

        """
        own = self.scale_of({})
        if scale is not None and self.guider is not None and scale != own:
            raise ValueError(
                f"{type(pipe).__name__} is guided by pipe.guider at {own:g}, got guidance_scale={scale:g}; set "
                f"pipe.guider.guidance_scale = {scale:g}, or leave guidance_scale out"
            )
        if scale is not None and self.argument is None and self.guider is None:
            named = ", ".join(name for name in defaults_of(pipe) if "guidance_scale" in name) or "none"
            raise ValueError(
                f"{type(pipe).__name__} takes no single guidance scale, got guidance_scale={scale:g} (its call has: "
                f"{named}); leave guidance_scale out"
            )
        call = {**defaults_of(pipe), **options, **self.arguments(scale)}
        found = self.scale_of(call)
        if self._schedule(call) is not None and len({float(each) for each in self._schedule(call)}) > 1:
            log.warning(SCHEDULED, type(pipe).__name__, found)
        return found

    def _unmet(self, name: str, call: Mapping[str, Any]) -> bool:
        """Return whether a call lacks what a scale needs to have an effect: a negative prompt, a picture."""
        unmet = {TRUE: not negative(call), OF_PICTURES: call.get("image") is None}
        return name in self.off and unmet.get(name, False)

    def _schedule(self, call: Mapping[str, Any]) -> Any:
        """Return the scales of the steps of a call, None where it has one for all."""
        return next((call[name] for name in self.single if call.get(name) is not None), None)


def defaults_of(pipe: Any) -> dict[str, Any]:
    """Return the arguments of a pipeline's call with their defaults."""
    return {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()}


def _kept(value: Any) -> Any:
    """Return an argument of a call as a graph keeps it: numbers, texts, bools, None, lists of these, or a digest."""
    array = array_of(value)
    value = array.tolist() if array is not None and array.size <= MOST else value
    if (
        isinstance(value, (list, tuple))
        and len(value) <= MOST
        and not any(isinstance(v, (list, tuple)) for v in value)
    ):
        return [_kept(member) for member in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(value)
    digest = "" if array is None else f"sha256:{digest_of_array(array)}"
    return f"{type(value).__name__} {digest}".rstrip()


def negative(call: Mapping[str, Any]) -> bool:
    """Return whether a call has a negative prompt."""
    return any(call.get(name) is not None for name in NEGATIVE)


def check_inside(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse a call that reads inside the model what a reused layer does not compute: it would read the last one's.

    Raises:
        ValueError: if it does.

    """
    for name in (name for name in INSIDE if call.get(name)):
        raise ValueError(
            f"{type(pipe).__name__} reads attention maps inside its {class_name(denoiser_of(pipe))} for "
            f"{name}={call[name]:g}, which reused layers do not compute; call it, and calibrate it (options), with "
            f"{name}=0.0"
        )
    if any(name in call for name in INSIDE):  # which keeps attention maps without reading them
        return
    model = denoiser_of(pipe)
    kept = [type(processor).__name__ for processor in map(_processor_of, model.modules()) if _stores(processor)]
    if kept:
        raise ValueError(
            f"{type(pipe).__name__} reads attention maps inside its {class_name(model)}, where {kept[0]} keeps them, "
            "and reused layers do not compute these; call it without a graph (l2c.remove), or take out what another "
            "pipeline left there, set_default_attn_processor()"
        )


def _processor_of(module: Any) -> Any:
    return vars(module).get("processor") or module._modules.get("processor")


def _stores(processor: Any) -> bool:
    """Return whether an attention's processor keeps its maps for the pipeline: in a store, or as an attribute."""
    names = () if processor is None else (type(processor).__name__, *vars(processor))
    return any(STORES.search(name) for name in names)


def guidance_of(pipe: Any) -> PipelineGuidance:
    """Return how a pipeline's calls are guided.

    Pipelines with `true_cfg_scale` (Qwen-Image, Flux) make an unconditional pass where that is above 1 and a negative
    prompt is given; their `guidance_scale` is an input of models that take one. Where there are several scales
    (Stable Video Diffusion has one a frame), there is no single one.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    found = _usual_of(pipe, parameters)
    beside = {name: BESIDE[name] for name in BESIDE if name in parameters}
    single = {SCHEDULE: None} if SCHEDULE in parameters else {}
    return replace(found, off={**found.off, **beside}, single=single)


def _usual_of(pipe: Any, parameters: Collection[str]) -> PipelineGuidance:
    """Return how a pipeline's calls are guided by conditions of their own."""
    guider: Any = getattr(pipe, "guider", None)
    if hasattr(guider, "guidance_scale"):
        return PipelineGuidance("uvit" if guider.use_original_formulation else "cfg", None, guider=guider)
    scales = {name: 1.0 for name in (TRUE, EMBEDDED) if name in parameters}
    if _takes_scale(denoiser_of(pipe)) and EMBEDDED in parameters:
        return PipelineGuidance("embedded", EMBEDDED, {TRUE: 1.0} if TRUE in parameters else {})
    if TRUE in parameters and not hasattr(
        pipe, "do_classifier_free_guidance"
    ):  # Chroma's inpainting names it in vain
        return PipelineGuidance("cfg", TRUE, {TRUE: 1.0}, {"negative_prompt": [""]})
    if scales:
        neutral = _neutral(pipe)
        mode = "cfg" if neutral == NEUTRAL_SCALE["cfg"] else "uvit"
        return PipelineGuidance(mode, EMBEDDED, {EMBEDDED: neutral})
    several = [name for name in parameters if name.endswith("guidance_scale")]
    return PipelineGuidance("cfg", None, dict.fromkeys(several, 1.0))


def _takes_scale(model: Any) -> bool:
    """Return whether a model takes the guidance scale as an input: Flux dev, models of latent consistency."""
    config = model.config
    return bool(getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None))


def _neutral(pipe: Any) -> float:
    """Return the guidance scale at which a pipeline runs no second branch, further ones being off.

    It is 1.0 for `uncond + s (cond - uncond)`, and 0.0 for `cond + s (cond - uncond)` (Z-Image).
    """
    own: dict[str, Any] = {
        f"_{name}": value for name, value in {**BESIDE, EMBEDDED: 1.0}.items() if name in defaults_of(pipe)
    }
    before = {name: getattr(pipe, name, None) for name in own}  # of the last call
    for name, value in own.items():
        setattr(pipe, name, value)
    try:
        return 0.0 if getattr(pipe, "do_classifier_free_guidance", False) else 1.0
    finally:
        for name, value in before.items():
            setattr(pipe, name, value)
