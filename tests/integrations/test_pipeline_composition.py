"""Graphs on pipelines beside what else people switch on: the output is that of replacing outputs by hand."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

import diffusers
from tiny_pipelines import STEPS, tiny_pipeline
from whole_pipelines import calibrated_as_drawn

import l2c
from l2c.integrations.diffusers import applied, denoiser_of
from l2c.integrations.diffusers.layers import find_layers, make_layer
from l2c.integrations.diffusers.timesteps import as_model_sees, timestep_of

HALF = STEPS // 2


def graph_of(pipe, call):
    """Return a graph at the times of a call; at its first evaluation and half-way everything is computed."""
    model, seen = denoiser_of(pipe), []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(timestep_of(module, args, kwargs)), with_kwargs=True
    )
    call()
    handle.remove()
    layers = find_layers(model)
    times = as_model_sees(pipe.scheduler.timesteps, seen[0], pipe.scheduler)
    rows = [[e in (0, HALF) or (3 * e + i) % 3 == 0 for i in range(len(layers))] for e in range(len(times))]
    return l2c.CacheGraph(
        rows=rows, layers=layers, timesteps=times, model=type(model).__name__, solver=type(pipe.scheduler).__name__
    )


@contextmanager
def swapped_by_hand(model, graph):
    """Compute everything, and put kept outputs in the place of those that a graph reuses."""
    stored, evaluation = {}, [-1]

    def swap(layer, place):
        def hook(module, args, kwargs, output):
            if graph.rows[evaluation[0]][place]:
                stored[place] = layer.form.branch(module, args, kwargs, output)
                return output
            return layer.form.stand_in(module, args, kwargs, stored[place])

        return layer.module.register_forward_hook(hook, with_kwargs=True)

    handles = [swap(make_layer(model, name), place) for place, name in enumerate(graph.layers)]
    handles.append(model.register_forward_pre_hook(lambda *_: evaluation.__setitem__(0, evaluation[0] + 1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def picture(seed=0):
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def sd_inpaint(tiny):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1.0
    pipe = diffusers.StableDiffusionInpaintPipeline(**tiny.pipe.components, requires_safety_checker=False)
    return pipe, {"image": picture(), "mask_image": mask, "height": 8, "width": 8, "strength": 1.0}


def sd_freeu(tiny):
    tiny.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return tiny.pipe, {}


def sd_several_pictures(tiny):
    return tiny.pipe, {"num_images_per_prompt": 2}


def sd_guidance_ends_half_way(tiny):
    def stop(pipe, step, t, given):
        if step != HALF - 1:
            return {}
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": given["prompt_embeds"].chunk(2)[1]}

    return tiny.pipe, {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


CASES = {
    case.__name__: case
    for case in (
        *(sd_inpaint, sd_freeu),
        *(sd_several_pictures, sd_guidance_ends_half_way),
    )
}


CONTROLNETS = ("sd_controlnet", "flux_controlnet")  # pipelines of their own


@pytest.mark.parametrize("name", [*CONTROLNETS, *CASES])
def test_cached_with_it_is_what_is_replaced_by_hand(name):
    tiny = tiny_pipeline(name if name in CONTROLNETS else name.partition("_")[0])
    pipe, options = CASES.get(name, lambda tiny: (tiny.pipe, {}))(tiny)
    pipe.set_progress_bar_config(disable=True)
    of = type(tiny)(pipe, {**tiny.options, **options}, tiny.prompts, tiny.scale)
    plain = of.draw()
    graph = graph_of(pipe, of.draw)
    with swapped_by_hand(denoiser_of(pipe), graph):
        expected = of.draw()
    with applied(pipe, graph):
        for _ in range(2):
            torch.testing.assert_close(of.draw(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, rtol=1e-4, atol=1e-4)
    with applied(pipe, graph.replace(rows=((True,) * graph.num_layers,) * graph.num_evaluations)):
        assert torch.equal(of.draw(), plain)
    assert torch.equal(of.draw(), plain)


def test_a_controlnet_runs_again_at_every_step_of_a_calibration():
    assert calibrated_as_drawn(tiny_pipeline("sd_controlnet")) == "yes"


OTHER_CACHES = {
    "FirstBlockCacheConfig": {"threshold": 10.0},
    "PyramidAttentionBroadcastConfig": {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 1001),
        "current_timestep_callback": lambda: 500,
    },
    "TaylorSeerCacheConfig": {"cache_interval": 2, "disable_cache_before_step": 1},
}


def test_another_cache_that_is_switched_on_under_a_graph_is_refused():
    tiny = tiny_pipeline("flux")
    model, graph = tiny.pipe.transformer, graph_of(tiny.pipe, tiny.draw)
    with applied(tiny.pipe, graph):
        cached = tiny.draw()
        for name, settings in OTHER_CACHES.items():
            model.enable_cache(getattr(diffusers, name)(**settings))
            with pytest.raises(ValueError, match=rf"now cached by {name}; call its disable_cache\(\), or l2c.remove"):
                tiny.draw()
            model.disable_cache()
            assert torch.equal(tiny.draw(), cached)
