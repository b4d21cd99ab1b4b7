"""Inputs of which a part alone moves: frames of a picture that stay, a time for each token, steps in another form."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

import diffusers
from tiny_pipelines import tiny_pipeline
from whole_pipelines import calibrated_as_drawn

from l2c.integrations.diffusers.guidance import defaults_of, guidance_of
from l2c.integrations.diffusers.recorded import recording
from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.regions import TokenTimes, blank, narrowed, placed, region_of
from l2c.integrations.diffusers.recorded.steps import RecordedStep
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver

PIPELINES = (
    "ltx_i2v",  # the scheduler is given the moving tokens alone, as frames
    "ltx_condition_text",  # steps take a time for each token, the prediction's sign is turned
    "wan_ti2v_image",  # the scheduler is given all frames, the model the picture in the place of the first
    "wan_vace",  # takes a prompt, not a list of prompts
    "sana_video_i2v",  # a time for each token, with the axes of the input
    "cosmos_video",  # a little noise is added to the frames that stay, guidance comes after a step
    "dreamlite",  # both branches at any scale, one prompt a call
    "flux2_klein_kv",  # tokens that stay are given at the first step alone
    "cosmos25",  # times are the scheduler's sigmas, frames that stay are given another prediction
)


@pytest.mark.parametrize("name", PIPELINES)
def test_calibrated_as_drawn(name):
    assert calibrated_as_drawn(tiny_pipeline(name)) == "yes"


def test_calibrated_as_drawn_from_a_face():
    pytest.importorskip("cv2", reason="needs the package OpenCV: pip install '.[pipelines]'")
    assert calibrated_as_drawn(tiny_pipeline("consisid")) == "yes"


def test_what_two_draws_share_lies_beside():
    one, other = torch.randn(2, 1, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    assert region_of(one, other, None) == ()
    for x in (one, other):
        x[:, :2], x[:, :, 3:] = 1.0, 2.0  # two axes
    region = region_of(one, other, None)
    assert region == ((1, 2, 4), (2, 0, 3))
    assert torch.equal(narrowed(one, region), one[:, 2:, :3])
    beside = blank(one, region)
    assert torch.equal(beside, blank(other, region))
    assert torch.equal(placed(beside, narrowed(one, region), region), one)
    assert narrowed(one[:, 2:, :3], region).shape == (1, 4, 3, 3)  # a prediction of this part alone
    one[:, :2] += 1e-3 * torch.randn(1, 2, 5, 3)  # noise that is added to what stays
    assert region_of(one, other, None) == region


def test_what_is_drawn_too_follows_the_sample():
    one, other = torch.randn(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    assert region_of(one, other, torch.zeros(1, 4, 5)) == ((1, 0, 4),)
    assert region_of(one, other, torch.zeros(1, 5, 4)) == ()  # in another form


def test_held_tokens_stay_though_noise_is_added_to_them():
    one, other = torch.randn(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    times = TokenTimes.of(torch.tensor([[0.0, 300.0, 900, 900, 900, 900]]), 900.0, 1)
    assert region_of(one, other, None, times) == ((1, 2, 4),)
    expected = [[0.0, 300.0, 500, 500, 500, 500], [0.0, 100.0, 100, 100, 100, 100]]
    assert times.at(torch.tensor([500.0, 100.0])).tolist() == expected
    assert TokenTimes.of(torch.tensor([900.0]), 900.0, 2) is TokenTimes.of(torch.ones(2), 1.0, 2) is None
    of_tokens = TokenTimes.of(torch.tensor([900.0, 0.0, 900.0]), 900.0, 1)  # of a model without a batch
    assert of_tokens.at(torch.tensor([500.0])).tolist() == [500.0, 0.0, 500.0]


def test_what_is_the_timestep_once_more_follows_it():
    class Model(torch.nn.Module):
        def forward(self, hidden_states, sigma, timestep_r, guidance, timestep):
            return hidden_states

    model, t, x = Model(), torch.ones(2), torch.zeros(2, 3)
    given = {"sigma": t, "timestep_r": t.clone(), "guidance": t.clone(), "timestep": t}
    call = RecordedCall.of(model, (x,), given)
    assert (call.also, set(call.conditions)) == (("sigma", "timestep_r"), {"guidance"})
    asked = call.arguments(x, torch.tensor([0.5]), call.conditions)
    values = {name: value[1].item() for name, value in asked.items() if name != "hidden_states"}
    assert values == {"sigma": 0.5, "timestep_r": 0.5, "timestep": 0.5, "guidance": 1.0}
    moved = RecordedCall.of(model, (x,), {**given, "guidance": t + 1})
    assert recording._drawn(RecordedStep(calls=[call]), call) == []
    assert recording._drawn(RecordedStep(calls=[call]), moved) == ["guidance"]


def test_guidance_beside_the_scale_is_off_and_named():
    class Pipe:
        _guidance_scale, _audio_guidance_scale = 3.0, 7.0  # of the last call

        @property
        def do_classifier_free_guidance(self):
            return self._guidance_scale > 1 or self._audio_guidance_scale > 1

        def __call__(self, prompt, guidance_scale=3.0, audio_guidance_scale=7.0, stg_scale=0.0):
            pass

    pipe = Pipe()
    pipe.transformer = torch.nn.Module()
    pipe.transformer.config = {}
    guidance = guidance_of(pipe)
    assert guidance.mode == "cfg"
    assert guidance.off == {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0}
    assert (pipe._guidance_scale, pipe._audio_guidance_scale) == (3.0, 7.0)
    assert guidance.left_out(defaults_of(pipe)) == {"audio_guidance_scale": 7.0}


def test_a_scheduler_is_given_the_step_after():
    scheduler = diffusers.UnCLIPScheduler(prediction_type="sample")
    scheduler.set_timesteps(4)
    solver = SchedulerSolver(scheduler, scheduler.timesteps.tolist())
    assert solver.stochastic
    x = noise = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    generator, times = torch.Generator().manual_seed(1), [*scheduler.timesteps, None]
    for t, after in itertools.pairwise(times):
        x = scheduler.step(x.cos(), t, x, prev_timestep=after, generator=generator, return_dict=False)[0]
    trajectory = solver.trajectory(noise, generator=torch.Generator().manual_seed(1))
    evaluation = next(trajectory)
    for _ in range(3):
        evaluation = trajectory.send(evaluation.x.cos())
    with pytest.raises(StopIteration) as end:
        trajectory.send(evaluation.x.cos())
    assert torch.equal(end.value.value, x)


def test_a_scheduler_is_given_the_step_before():
    scheduler = diffusers.CogVideoXDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    solver = SchedulerSolver(scheduler, scheduler.timesteps.tolist())
    assert solver.stochastic
    x = noise = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    old, before, generator = None, None, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        x, old = scheduler.step(x.cos(), old, t, before, x, generator=generator, return_dict=False)
        before = t
    trajectory = solver.trajectory(noise, generator=torch.Generator().manual_seed(1))
    evaluation = next(trajectory)
    try:
        while True:
            evaluation = trajectory.send(evaluation.x.cos())
    except StopIteration as end:
        drawn = end.value
    assert torch.equal(drawn, x)
