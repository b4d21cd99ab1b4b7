"""Whole pipelines of tiny random parts, end to end under a cache graph."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from diffusers.hooks import HookRegistry
from test_pipeline_composition import swapped_by_hand

import l2c
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers import ROOT, applied, apply, denoiser_of, remove
from l2c.integrations.diffusers.layers import find_layers

NAMES = ("dit", "pixart", "stable_diffusion")
STEPS = 5


def draw(pipe, steps=STEPS, **changes):
    prompts = {"class_labels": [3, 7]} if type(pipe).__name__ == "DiTPipeline" else {"prompt": ["a cat", "a red dog"]}
    sizes = (
        {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
        if "PixArt" in type(pipe).__name__
        else {}
    )
    if "Img2Img" not in type(pipe).__name__:
        changes = {**sizes, **changes}
    return pipe(
        **{
            **prompts,
            "num_inference_steps": steps,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "np",
            "guidance_scale": 3.0,
            **changes,
        }
    ).images


def graph_of(pipe, rows=None, steps=STEPS, random_rows=None):
    pipe.scheduler.set_timesteps(steps)
    model = denoiser_of(pipe)
    layers = find_layers(model)
    return l2c.CacheGraph(
        rows=rows or random_rows(steps, len(layers), seed=1),
        layers=layers,
        timesteps=tuple(pipe.scheduler.timesteps.tolist()),
        model=type(model).__name__,
        solver=type(pipe.scheduler).__name__,
    )


def swap_by_hand(pipe, graph):
    """Replace outputs by torch hooks, in order of calls: everything is computed, reused values are put back."""
    model = denoiser_of(pipe)
    at, stored = {"e": -1}, {}

    def swap(module, args, kwargs, output):
        name = names[module]
        residual = name.rpartition(".")[2].isdigit()
        inner = output[0] if isinstance(output, tuple) else output
        x = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]) if residual else 0.0
        if graph.rows[at["e"]][graph.layers.index(name)]:
            stored[name] = inner - x
            return output
        return (x + stored[name],) if isinstance(output, tuple) else x + stored[name]

    names = {model.get_submodule(name): name for name in graph.layers}
    handles = [module.register_forward_hook(swap, with_kwargs=True) for module in names]
    handles.append(model.register_forward_pre_hook(lambda module, args: at.update(e=at["e"] + 1)))
    return handles


@pytest.mark.parametrize("name", NAMES)
def test_pipelines_end_to_end(name, make_pipeline, random_rows):
    pipe = make_pipeline(name)
    plain = draw(pipe)
    graph = graph_of(pipe, random_rows=random_rows)
    handles = swap_by_hand(pipe, graph)
    expected = draw(pipe)
    for handle in handles:
        handle.remove()
    apply(pipe, graph)
    for _ in range(3):
        assert abs(draw(pipe) - expected).max() < 1e-4
    hook = HookRegistry.check_if_exists_or_initialize(denoiser_of(pipe)).get_hook(ROOT)
    assert hook.cached_bytes == 0
    assert abs(expected - plain).max() > 1e-3
    remove(pipe)
    assert (draw(pipe) == plain).all()
    apply(pipe, graph_of(pipe, rows=((True,) * graph.num_layers,) * STEPS))
    assert (draw(pipe) == plain).all()


def test_an_aborted_call_leaves_no_trace(make_pipeline, random_rows):
    pipe = make_pipeline("stable_diffusion")
    rows = [list(row) for row in random_rows(STEPS, 4, seed=1)]
    rows[1] = [False] * 4
    apply(pipe, graph_of(pipe, rows=rows))
    cached = draw(pipe)

    def stop(pipe, step, t, kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=stop, prompt=["a blue dog", "a blue dog"])
    assert (draw(pipe) == cached).all()


def test_image_to_image_starts_in_the_middle(make_pipeline, random_rows):
    pipe = make_pipeline("stable_diffusion")
    graph = graph_of(pipe, rows=[[bool(bit)] * 4 for bit in (1, 0, 0, 0, 1)])
    image = torch.rand(2, 3, 8, 8)
    edit, other = (
        StableDiffusionImg2ImgPipeline(**made.components, requires_safety_checker=False)
        for made in (pipe, make_pipeline("stable_diffusion"))  # the other one never has a graph
    )
    for made in (edit, other):
        made.set_progress_bar_config(disable=True)
    calls = []
    plain = draw(other, image=image, strength=0.6)
    of_three = with_evaluations(graph, [2, 3, 4])  # the first of which computes everything
    with swapped_by_hand(other.unet, of_three):
        expected = draw(other, image=image, strength=0.6)
    with applied(edit, graph.replace(rows=[[True] * 4] * 5)):
        assert (draw(edit, image=image, strength=0.6) == plain).all()
    apply(edit, graph)
    pipe.unet.down_blocks[0].attentions[0].norm.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        np.testing.assert_allclose(draw(edit, image=image, strength=0.6), expected, rtol=1e-5, atol=1e-5)
        assert len(calls) == 2  # at evaluation 2, where nothing was kept yet, and at 4
        calls.clear()
    assert abs(expected - plain).max() > 1e-4
    assert (draw(other, image=image, strength=0.6) == plain).all()


def test_other_steps_and_schedulers_are_refused_or_resampled(make_pipeline, random_rows, caplog):
    pipe = make_pipeline("pixart")
    graph = graph_of(pipe, random_rows=random_rows)
    apply(pipe, graph)
    with pytest.raises(ValueError, match=r"made for num_evaluations 5, got 7; call the pipeline with the graph"):
        draw(pipe, steps=7)
    first = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(first.config, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="takes predictions for v_prediction, for epsilon when the graph was"):
        draw(pipe)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(first.config, timestep_spacing="trailing")
    with pytest.raises(
        ValueError, match=r"evaluation 3 is at t = 400, but .* 5 evaluations takes it at t = 399; give"
    ):
        draw(pipe)
    remove(pipe)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=r"made for solver DPMSolverMultistepScheduler, got DDIMScheduler; set pipe"):
        apply(pipe, graph)
    apply(pipe, graph, resample=True)
    with caplog.at_level(logging.WARNING):
        cached = draw(pipe, steps=7)
    assert "resampled to 7 by nearest timestep" in caplog.text
    assert "7 evaluations" in caplog.text
    assert (draw(pipe, steps=7) == cached).all()
    remove(pipe)
    assert abs(draw(pipe, steps=7) - cached).max() > 1e-4
