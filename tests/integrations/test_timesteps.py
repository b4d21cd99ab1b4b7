"""Timesteps of a scheduler in the units of the model that is given them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

import diffusers
import torch
from tiny_pipelines import tiny_pipeline

import l2c
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.timesteps import as_model_sees, trajectory_of

TIMES = (1000.0, 750.0, 500.0, 250.0)
UNITS = {
    "as they are": TIMES,
    "of one": tuple(t / 1000 for t in TIMES),
    "rising": tuple(1 - t / 1000 for t in TIMES),
    "one later": tuple(t - 1 for t in TIMES),
}


def scheduler(times=TIMES, begin=None):
    return SimpleNamespace(timesteps=times, config=SimpleNamespace(num_train_timesteps=1000), begin_index=begin)


@pytest.mark.parametrize("begin", range(4))
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_a_trajectory_is_in_the_units_of_its_model_wherever_it_begins(unit, begin):
    t = unit[begin]  # half-way 0.25 of a rising time is also the last one of a falling time
    assert t == 0.5 or as_model_sees(TIMES, t, scheduler(begin=begin)) == unit
    assert as_model_sees(TIMES, t, scheduler(), like=unit[::3]) == unit
    assert begin or as_model_sees(TIMES, t, scheduler()) == unit


@pytest.mark.parametrize(("steps", "begin"), [(4, 2), (8, 4), (4, 3), (6, 4), (20, 16), (8, 0), (7, 2)])
@pytest.mark.parametrize("like", [1, 2, 3], ids=["the same", "of fewer steps", "of a part"])
def test_a_flow_is_in_its_units_wherever_it_begins(steps, begin, like):
    """0.5 is the middle of a flow, and sigma / (1 + sigma) of its first step; 0.2 is that of 0.25."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    flow.set_begin_index(begin)
    own = tuple(1 - i / steps for i in range(steps))
    others = {1: own, 2: (1.0, 0.75, 0.5, 0.25), 3: own[begin:]}[like]
    assert as_model_sees(flow.timesteps, own[begin], flow, like=others) == pytest.approx(own)
    assert as_model_sees(flow.timesteps, own[begin], flow) == pytest.approx(own)


def test_the_second_of_two_models_begins_where_its_scheduler_is():
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(4)
    own = tuple(flow.timesteps.div(1000).tolist())
    for made, begin in ((2, 2), (4, 0)):  # steps of the first model; of a trajectory that is over nothing is known
        flow._step_index = made
        assert as_model_sees(flow.timesteps, own[begin], flow) == pytest.approx(own)


def test_the_last_time_is_not_taken_for_the_first_of_another_unit():
    times = (1000.0, 667.0, 334.0, 1.0)  # AuraFlow: 1 is the first time of the model, and the scheduler's last
    assert as_model_sees(times, 1.0, scheduler(times)) == pytest.approx((1.0, 0.667, 0.334, 0.001))


@pytest.mark.parametrize(("begin", "made", "end"), [(0, 4, 4), (1, 3, 4), (0, 2, 2), (1, 2, 3), (1, 9, 4), (0, 0, 4)])
def test_a_call_ends_where_its_pipeline_ends(begin, made, end):
    pipe = SimpleNamespace(scheduler=scheduler(begin=begin), _num_timesteps=made)
    assert trajectory_of(pipe, TIMES[begin]) == (TIMES, end)
    del pipe._num_timesteps
    assert trajectory_of(pipe, TIMES[begin]) == (TIMES, 4)


@pytest.mark.parametrize("steps", [4, 6, 20])
def test_a_picture_is_redrawn_from_half_way(steps):
    tiny = tiny_pipeline("flux_img2img")
    layers = find_layers(tiny.pipe.transformer)
    times = [1 - i / steps for i in range(steps)]
    graph = l2c.CacheGraph(
        rows=[[True] * len(layers)] * steps,
        layers=layers,
        timesteps=times,
        model="FluxTransformer2DModel",
        solver="FlowMatchEulerDiscreteScheduler",
    )
    for strength in (1.0, 0.5, 0.375, 1 / 3, 0.2):
        if steps * strength < 1:
            continue
        pipe = type(tiny)(tiny.pipe, {**tiny.options, "strength": strength}, tiny.prompts, tiny.scale)
        plain = pipe.draw(num_inference_steps=steps)
        with l2c.applied(tiny.pipe, graph):
            assert torch.equal(pipe.draw(num_inference_steps=steps), plain)
