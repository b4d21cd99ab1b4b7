"""Whole pipelines from tiny random parts: recorded, sampled, applied, removed; docs/coverage.md has all."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from tiny_pipelines import STEPS, tiny_pipeline

import l2c
from l2c.integrations.diffusers import applied
from l2c.integrations.diffusers.denoisers import denoisers_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.recorded.turns import graphs_of
from l2c.policies.context import PolicyContext

# Each differs from the others in how the model is called or guided.
GUIDANCE = {
    "sdxl": "cfg",  # the empty prompt is zeros
    "flux": "embedded",
    "qwen_image": "cfg_normed",  # prompts and branches differ in length, branches run apart
    "z_image": "uvit",  # lists of tensors, time that rises
    "lumina2": "cfg_normed",  # the prediction's sign is turned
    "hidream": "cfg",  # prompts lie along the second axis of a condition
    "cogvideox": "cfg",  # blocks return (image, text)
    "ltx": "cfg",  # latents are tokens
    "wan22": "cfg",  # two denoisers that take turns
    "ideogram4": "cfg",  # ... each of which makes a guidance branch
    "svd": "cfg",  # pictures beside the noisy frames
    "glm_image_edit": "cfg",  # the model is called before the timesteps are set
    "cosmos": "uvit",  # branches are combined after a step of the scheduler
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_recorded_sampled_applied_removed(name, random_rows):
    tiny = tiny_pipeline(name)
    pipe, changes = tiny.pipe, {"max_guidance_scale": 1.0} if name == "svd" else {}
    backbone = pipeline_backbone(
        pipe,
        tiny.prompts,
        num_evaluations=STEPS,
        guidance_scale=tiny.scale,
        options={**tiny.options, **changes},
    )
    assert backbone.conventions.guidance == GUIDANCE[name]
    noise = torch.randn(1, *backbone.input_shape, generator=torch.Generator().manual_seed(0))

    def latents():
        return tiny.draw(tiny.prompts[1], latents=tiny.as_given(noise.clone()), output_type="latent", **changes)

    plain = latents()
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=tiny.scale)
    torch.testing.assert_close(sampler.sample([1], noise=noise).reshape(plain.shape), plain, rtol=2e-3, atol=2e-3)
    rows = [list(row) for row in random_rows(STEPS, backbone.num_layers, seed=1)]
    graph = PolicyContext.of(sampler).blank
    if backbone.turns.experts:
        of = [backbone.turns.at(t) for t in graph.timesteps]
        rows[next(e for e, model in enumerate(of) if model is not of[0])] = [True] * backbone.num_layers
    graph = graph.replace(rows=rows, routed=None)
    ours = l2c.Sampler(backbone, graph=graph).sample([1], noise=noise)
    with applied(pipe, graphs_of(graph, backbone)):
        for _ in range(2):
            cached = latents()
            torch.testing.assert_close(cached, ours.reshape(plain.shape), rtol=2e-3, atol=2e-3)
    assert not torch.allclose(cached, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(latents(), plain)


def test_a_network_of_another_name_whose_scheduler_adds_noise(tmp_path):
    """Stable Cascade's prior; the budget is out of reach of its layers, so that its whole output is taken."""
    tiny = tiny_pipeline("cascade_prior")
    assert list(denoisers_of(tiny.pipe)) == ["prior"]
    plain = tiny.draw()
    settings = {"num_inference_steps": STEPS, "guidance_scale": tiny.scale, "options": tiny.options}
    graph = l2c.accelerate(tiny.pipe, tiny.prompts, budget=0.5, num_trajectories=2, folder=tmp_path, **settings)
    assert graph.layers == ("output",)
    cached = tiny.draw()
    assert not torch.equal(cached, plain)
    assert torch.equal(tiny.draw(), cached)
    settings |= {"layers": "block", "policy": "block_caching", "folder": tmp_path}
    with pytest.raises(ValueError, match="out of reach"):
        l2c.accelerate(tiny.pipe, tiny.prompts, budget=0.5, **settings)
    assert torch.equal(tiny.draw(), cached)
    l2c.remove(tiny.pipe)
    assert torch.equal(tiny.draw(), plain)


def test_tables_that_modulate_are_no_layers():
    """Blocks of JoyImage hold tables (1, 6, D), which look like experts of feed-forwards."""
    model = tiny_pipeline("joyimage").pipe.transformer
    assert {name.rpartition(".")[2] for name in find_layers(model)} == {"img_mlp", "txt_mlp", "attn"}
