"""What a pipeline is called with is checked by the same rules, in the same words, as a sampler's arguments."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler

import l2c
from l2c.backbones.digest import known_digest
from l2c.integrations.diffusers import apply, denoiser_of, remove
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.scheduler_solver import adds_noise

STEPS = 4


@pytest.fixture
def pipe(make_pipeline):
    pipe = make_pipeline("pixart")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    yield pipe
    remove(pipe)


def graph_of(pipe, **changes):
    pipe.scheduler.set_timesteps(STEPS)
    model = denoiser_of(pipe)
    layers = find_layers(model)
    rows = [(True,) * len(layers)] * 2 + [(False,) * len(layers), (True,) * len(layers)]
    made_for = {
        "rows": rows,
        "layers": layers,
        "timesteps": pipe.scheduler.timesteps.tolist(),
        "model": type(model).__name__,
        "solver": type(pipe.scheduler).__name__,
        "guidance": "cfg",
    }
    return l2c.CacheGraph(**{**made_for, **changes})


def draw(pipe, **changes):
    given = {"prompt": ["a cat"], "num_inference_steps": STEPS, "height": 8, "width": 8, "output_type": "np"}
    given |= {"use_resolution_binning": False, "clean_caption": False, "guidance_scale": 4.5}
    return pipe(**{**given, "generator": torch.Generator().manual_seed(0), **changes}).images


def test_another_guidance_scale_is_refused_unless_any_will_do(pipe):
    graph = graph_of(pipe, cfg_scale=4.5)
    apply(pipe, graph)
    draw(pipe)
    for scale in (1.5, 1.0):  # at 1.0 there is no second branch
        with pytest.raises(ValueError, match=rf"made for cfg_scale 4.5, got {scale}; call .*any_guidance=True"):
            draw(pipe, guidance_scale=scale)
    draw(pipe)  # a refused call leaves nothing behind
    remove(pipe)
    apply(pipe, graph, any_guidance=True)
    draw(pipe, guidance_scale=1.5)
    draw(pipe, guidance_scale=1.0)


def test_a_pipeline_made_from_the_parts_of_another_is_checked_as_it_is_called(pipe):
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    apply(pipe, graph_of(pipe, cfg_scale=4.5))
    cached = draw(pipe)
    assert (draw(other) == cached).all()
    with pytest.raises(ValueError, match=r"made for cfg_scale 4.5, got 1.5"):
        draw(other, guidance_scale=1.5)
    other.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="made for solver DDIMScheduler, got EulerAncestralDiscreteScheduler"):
        draw(other)
    assert (draw(pipe) == cached).all()


def test_weights_that_come_back_from_16_bits_are_others(pipe):
    model = denoiser_of(pipe)
    apply(pipe, graph_of(pipe, fingerprint=known_digest(model, model.state_dict())))
    draw(pipe)
    pipe.to(torch.bfloat16)
    draw(pipe)  # weights are compared in the graph's precision alone
    pipe.to(torch.float32)
    with pytest.raises(ValueError, match="weights changed after the graph was applied"):
        draw(pipe)


def test_guidance_that_is_off_is_one_scale(pipe):
    apply(pipe, graph_of(pipe, cfg_scale=1.0))
    draw(pipe, guidance_scale=1.0)
    draw(pipe, guidance_scale=0.0)
    with pytest.raises(ValueError, match=r"made for cfg_scale 1.0, got 2.0"):
        draw(pipe, guidance_scale=2.0)


def test_a_graph_without_a_scale_accepts_any(pipe):
    apply(pipe, graph_of(pipe))
    for scale in (1.0, 3.0):
        draw(pipe, guidance_scale=scale)


def test_extrapolation_along_noisy_trajectories_is_refused(pipe):
    apply(pipe, graph_of(pipe, reuse=("linear",) * STEPS))
    draw(pipe)
    with pytest.raises(
        ValueError, match=r"extrapolates \(reuse is linear at evaluation 2\).* adds noise at its steps"
    ):
        draw(pipe, eta=0.5)
    remove(pipe)
    apply(pipe, graph_of(pipe))
    draw(pipe, eta=0.5)


def test_noise_follows_from_class_and_configuration():
    assert adds_noise(EulerAncestralDiscreteScheduler())
    assert not adds_noise(DDIMScheduler())
    assert adds_noise(DDIMScheduler(), eta=0.1)
    assert not adds_noise(FlowMatchEulerDiscreteScheduler(), eta=0.1)  # its steps take none
    assert adds_noise(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
