"""How pipelines' calls are guided, and what they draw from."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from test_pipeline_composition import graph_of
from tiny_pipelines import STEPS, tiny_pipeline

import l2c
from l2c.integrations.diffusers import applied
from l2c.integrations.diffusers.guidance import check_inside, defaults_of, guidance_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.options import Names, check_options
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.prompts import check_prompts, condition_of, read_prompts
from l2c.sampling.binding import binding_of


class Called:
    """What is looked at of a pipeline."""

    def __init__(self, **config: object) -> None:
        self.transformer = nn.Module()
        self.transformer.config = SimpleNamespace(**config)


class TrueGuidance(Called):
    def __call__(self, prompt=None, negative_prompt=None, true_cfg_scale=4.0, guidance_scale=3.5):
        """Take the scales of Flux and Qwen-Image."""


class OfPictures(Called):
    def __call__(self, image, min_guidance_scale=1.0, max_guidance_scale=3.0):
        """Take the scales of Stable Video Diffusion."""


class Guided(Called):
    def __call__(self, prompt, guidance_scale=7.5):
        """Take the scale of most pipelines."""


class Scheduled(Called):
    def __call__(self, prompt, guidance_scale=None, guidance_schedule=(7.0, 7.0, 3.0)):
        """Take a scale for each step, or one for all."""


class Perturbed(Called):
    def __call__(self, prompt, guidance_scale=7.5, negative_prompt=None, pag_scale=3.0):
        """Take the scale of perturbed attention too."""


class Edited(Called):
    def __call__(self, prompt, image=None, guidance_scale=7.5, image_guidance_scale=1.5):
        """Take the scale of a branch with the picture alone."""


class OfNothing(Called):
    def __call__(self, num_inference_steps=2):
        """Take nothing to draw."""


def test_true_guidance_needs_a_negative_prompt():
    pipe = TrueGuidance(guidance_embeds=False)
    guidance = guidance_of(pipe)
    assert (guidance.mode, guidance.argument) == ("cfg", "true_cfg_scale")
    assert guidance.asked(pipe, {}) == 1.0
    assert guidance.asked(pipe, {"negative_prompt": " "}) == 4.0
    assert guidance.asked(pipe, {"negative_prompt": " ", "true_cfg_scale": 0.5}) == 1.0


def test_a_scale_that_is_an_input_is_the_one_that_counts():
    pipe = TrueGuidance(guidance_embeds=True)
    guidance = guidance_of(pipe)
    assert (guidance.mode, guidance.argument) == ("embedded", "guidance_scale")
    assert guidance.asked(pipe, {}) == 3.5
    assert guidance.off == {"true_cfg_scale": 1.0}


@pytest.mark.parametrize("scale", [0.0, 1.0, -1.0])
def test_scales_that_switch_guidance_off_are_one(scale):
    pipe = Guided()
    assert guidance_of(pipe).asked(pipe, {}, scale) == 1.0  # turbo models are called with 0
    assert guidance_of(pipe).asked(pipe, {}) == 7.5
    assert guidance_of(pipe).asked(pipe, {"guidance_scale": 0.0}) == 1.0


def test_the_scale_is_an_input_of_models_of_latent_consistency():
    pipe = Guided(time_cond_proj_dim=16)
    assert guidance_of(pipe).mode == "embedded"
    assert guidance_of(pipe).asked(pipe, {}, 0.5) == 0.5


def test_a_scale_for_each_step_counts_by_the_first_one_unless_one_is_given(caplog):
    pipe = Scheduled()
    guidance = guidance_of(pipe)
    assert guidance.arguments(4.0) == {"guidance_scale": 4.0, "guidance_schedule": None}
    assert guidance.asked(pipe, {}, 4.0) == 4.0
    assert not caplog.messages
    assert guidance.asked(pipe, {}) == 7.0
    assert caplog.messages == [
        "Scheduled is guided by a scale for each step; it is calibrated at that of the first one, 7"
    ]
    with guidance.at(5.0) as arguments:
        assert arguments == {"guidance_scale": 5.0, "guidance_schedule": None}
    with pytest.raises(ValueError, match=r"options holds 'guidance_schedule', which guidance_scale= says"):
        check_options(pipe, {"guidance_schedule": [3.0]}, Names())


def test_a_guider_holds_the_scale():
    from diffusers import ClassifierFreeGuidance

    pipe = OfNothing()
    pipe.guider = ClassifierFreeGuidance(guidance_scale=6.0)
    guidance = guidance_of(pipe)
    assert guidance.asked(pipe, {}) == guidance.asked(pipe, {}, 6.0) == 6.0
    with pytest.raises(ValueError, match=r"by pipe.guider at 6, got guidance_scale=4; set pipe.guider"):
        guidance.asked(pipe, {}, 4.0)
    with guidance.at(1.0) as arguments:
        assert (arguments, pipe.guider.num_conditions) == ({}, 1)
    assert (pipe.guider.guidance_scale, pipe.guider.num_conditions) == (6.0, 2)
    pipe.guider.disable()
    assert guidance.asked(pipe, {}) == 1.0
    own = guidance.options_of(pipe, {})
    assert (own["guider"], own["guider.guidance_rescale"]) == ("ClassifierFreeGuidance", 0.0)
    assert "guider.guidance_scale" not in own


def test_further_branches_are_switched_off_and_named():
    perturbed, true, plain = map(guidance_of, (Perturbed(), TrueGuidance(guidance_embeds=True), Guided()))
    assert perturbed.off == {"guidance_scale": 1.0, "pag_scale": 0.0}
    assert perturbed.left_out({"guidance_scale": 7.5, "pag_scale": 3.0}) == {"pag_scale": 3.0}
    assert perturbed.left_out({"pag_scale": 0.0}) == plain.left_out({"guidance_scale": 7.5}) == {}
    assert true.left_out({"true_cfg_scale": 4.0, "negative_prompt": "blurred"}) == {"true_cfg_scale": 4.0}
    assert true.left_out({"true_cfg_scale": 4.0}) == {}  # off without a negative prompt
    edited = guidance_of(Edited())
    assert edited.left_out({"image_guidance_scale": 1.5, "image": "a picture"}) == {"image_guidance_scale": 1.5}
    assert edited.left_out({"image_guidance_scale": 1.5}) == {}  # off without a picture


class Several(Called):
    def __call__(
        self,
        prompt,
        guidance_scale=7.5,
        guidance_scale_2=None,
        guidance_rescale=0.0,
        use_dynamic_cfg=False,
        skip_guidance_layers=None,
        pag_scale=0.0,
        prior_guidance_scale=4.0,
        lora_scale=1.0,
        control_guidance_start=0.0,
        guidance_latents=None,
        negative_prompt=None,
    ):
        """Take what says how a call is guided, and what does not though it is called so."""


def test_the_arguments_that_guide_a_call_beside_its_scale_are_told_by_their_names():
    pipe = Several()
    pipe.prior_scheduler = object()  # of another trajectory
    call = defaults_of(pipe)
    usual = {"guidance_scale_2": None, "guidance_rescale": 0.0, "use_dynamic_cfg": False, "pag_scale": 0.0}
    assert guidance_of(pipe).options_of(pipe, call) == {**usual, "skip_guidance_layers": None}
    call |= {"skip_guidance_layers": (7, 8), "guidance_scale_2": torch.tensor(2.0), "pag_scale": float("nan")}
    found = guidance_of(pipe).options_of(pipe, call)
    kept = {"skip_guidance_layers": [7.0, 8.0], "guidance_scale_2": 2.0, "pag_scale": "nan"}
    assert found == {**usual, **kept}
    many = guidance_of(pipe).options_of(pipe, {"skip_guidance_layers": torch.ones(5000)})["skip_guidance_layers"]
    assert re.fullmatch("Tensor [a-z0-9:]{64,80}", many)
    assert guidance_of(pipe).options_of(pipe, {"skip_guidance_layers": print}) == {
        "skip_guidance_layers": "builtin_function_or_method"
    }


def test_what_has_no_effect_in_a_call_is_as_if_it_were_off():
    true, distilled = TrueGuidance(guidance_embeds=True), TrueGuidance(guidance_embeds=False)
    call = {"true_cfg_scale": 4.0, "guidance_scale": 3.5}
    assert guidance_of(true).options_of(true, call) == {"true_cfg_scale": 1.0}
    assert guidance_of(true).options_of(true, {**call, "negative_prompt": ""}) == {"true_cfg_scale": 4.0}
    assert guidance_of(distilled).options_of(distilled, call) == {}
    scheduled = Scheduled()
    of_steps = guidance_of(scheduled).options_of(scheduled, {"guidance_schedule": (7.0, 3.0)})
    assert of_steps == {"guidance_schedule": [7.0, 3.0]}
    assert guidance_of(scheduled).options_of(scheduled, {"guidance_schedule": (7.0, 7.0)}) == {}


class InVain(Called):
    do_classifier_free_guidance = True

    def __call__(self, prompt, negative_prompt=None, true_cfg_scale=1.0, guidance_scale=7.0):
        """Take the scales of Chroma's inpainting, which heeds one of them."""


def test_a_scale_that_the_pipeline_does_not_heed_is_not_taken_for_its_own():
    assert guidance_of(InVain(guidance_embeds=False)).argument == "guidance_scale"


class Degraded(Called):
    def __call__(self, prompt, guidance_scale=7.5, sag_scale=0.75):
        """Take the scale of a branch that is made from attention maps."""


def test_what_is_read_inside_the_model_is_refused_before_a_calibration():
    pipe = Degraded()
    with pytest.raises(ValueError, match=r"reads attention maps inside its Module for sag_scale=0.75, which reused"):
        pipeline_backbone(pipe, ["a cat"], num_evaluations=4)
    check_inside(pipe, {"sag_scale": 0.0})
    check_inside(Perturbed(), {"pag_scale": 3.0})


def test_processors_that_keep_attention_maps_are_refused():
    """Pipelines put them in for a call, under no argument of one name: Attend-and-Excite, LEDITS++."""
    from diffusers.models.attention_processor import AttnProcessor2_0
    from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
        pipeline_stable_diffusion_attend_and_excite as excite,
    )
    from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import LEDITSCrossAttnProcessor

    stores = LEDITSCrossAttnProcessor(None, "up", False, []), excite.AttendExciteAttnProcessor(None, "mid")
    for processor in stores:
        pipe = Guided()
        pipe.transformer.attn = nn.Module()
        pipe.transformer.attn.processor = AttnProcessor2_0()
        check_inside(pipe, {"guidance_scale": 3.0})
        pipe.transformer.attn.processor = processor
        with pytest.raises(ValueError, match=f"inside its Module, where {type(processor).__name__} keeps them"):
            check_inside(pipe, {"guidance_scale": 3.0})


def test_pictures_and_several_scales():
    pipe = OfPictures()
    assert guidance_of(pipe).argument is None
    assert guidance_of(pipe).off == {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0}
    assert check_prompts([b"a picture"], pipe)
    with pytest.raises(ValueError, match=r"takes no single guidance scale, got guidance_scale=3 "):
        guidance_of(pipe).asked(pipe, {}, 3.0)
    for refused in (lambda: check_prompts(["a cat"], pipe), lambda: read_prompts(None, pipe)):
        with pytest.raises(
            ValueError, match="OfPictures draws from pictures, not from texts; give a list of pictures"
        ):
            refused()
    with pytest.raises(ValueError, match="OfNothing takes none of class_labels, prompt, image, so that it cannot be"):
        condition_of(OfNothing())


def test_a_call_without_the_graphs_guidance_is_refused():
    tiny = tiny_pipeline("qwen_image")
    pipe = tiny.pipe
    tiny.draw()
    graph = l2c.CacheGraph(
        rows=((True,) * len(find_layers(pipe.transformer)),) * 4,
        layers=find_layers(pipe.transformer),
        timesteps=tuple(float(t) / 1000 for t in pipe.scheduler.timesteps),
        model="QwenImageTransformer2DModel",
        solver="FlowMatchEulerDiscreteScheduler",
        guidance="cfg_normed",
        cfg_scale=tiny.scale,
    )
    with applied(pipe, graph):
        tiny.draw()
        with pytest.raises(ValueError, match=r"cfg_scale 3.0, got 1.0; .* true_cfg_scale=3.0 and a negative_prompt"):
            tiny.draw(negative_prompt=None)


@pytest.mark.parametrize(
    ("name", "wrong"), [("z_image", {"cfg_truncation": 0.5}), ("ltx", {"guidance_rescale": 0.7})]
)
def test_a_call_that_is_guided_in_another_way_is_refused(name, wrong):
    tiny = tiny_pipeline(name)
    pipe = tiny.pipe
    how = {"num_evaluations": 2, "guidance_scale": tiny.scale, "options": tiny.options}
    backbone = pipeline_backbone(pipe, tiny.prompts[:1], **how)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=2, cfg_scale=tiny.scale)
    graph = l2c.CacheGraph.blank(binding_of(backbone, sampler.solver, weights_bound=False, guidance=sampler.guidance))
    graph = l2c.CacheGraph.from_json(graph.to_json())
    ((option, value),) = wrong.items()
    assert option in graph.guidance_options
    with applied(pipe, graph):
        tiny.draw(num_inference_steps=2)
        with pytest.raises(ValueError, match=rf"made for {option} .*, got {value}; call the pipeline with {option}="):
            tiny.draw(num_inference_steps=2, **wrong)
    with applied(pipe, graph, any_guidance=True):
        tiny.draw(num_inference_steps=2, **wrong)
    other = pipeline_backbone(pipe, tiny.prompts[:1], **{**how, "options": {**tiny.options, **wrong}})
    with pytest.raises(ValueError, match=rf"{option} .* read the pipeline again"):
        l2c.Sampler(other, graph=graph)
    l2c.Sampler(other, graph=graph, any_guidance=True)


def test_guidance_that_a_call_does_not_tell_is_said(caplog):
    """Modular pipelines take it among other arguments; a loop of one's own is no call."""
    from diffusers.modular_pipelines import FluxAutoBlocks
    from diffusers.modular_pipelines.flux import FluxModularPipeline

    tiny = tiny_pipeline("flux")
    modular = FluxModularPipeline(blocks=FluxAutoBlocks())
    parts = {name: part for name, part in tiny.pipe.components.items() if name in modular._component_specs}
    modular.update_components(**parts)
    graph = graph_of(tiny.pipe, tiny.draw).replace(cfg_scale=tiny.scale, guidance="embedded")
    options = {**tiny.options, "prompt": "a red cat", "num_inference_steps": STEPS, "output": "images"}
    with applied(modular, graph, any_guidance=True):
        modular(**options, guidance_scale=7.0)
    with applied(tiny.pipe, graph):
        tiny.draw()
    assert "cannot be read" not in caplog.text
    with applied(modular, graph):
        modular(**options, guidance_scale=7.0)
    assert "which cannot be read from this call of FluxModularPipeline" in caplog.text
