"""A calibration on a pipeline: any number of steps, shift and strength, each with the graph made for it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

import diffusers
from tiny_diffusers import flux, make_tokenizer, sd3

import l2c
from l2c.calibration.grid import Grid
from l2c.integrations.diffusers import ROOT, denoiser_of
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.rows import CalibratedRows
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver
from l2c.policies import calibration as policies

MEASURED, BUDGET = 8, 0.7
SHIFTING = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64, "base_shift": 0.2}
IMG2IMG = {"flux": "FluxImg2ImgPipeline", "sd3": "StableDiffusion3Img2ImgPipeline"}


@pytest.fixture(scope="module", params=["flux", "sd3"])
def calibrated(request):
    """A tiny pipeline, the options of its call, and its calibration."""
    make, settings = (flux, SHIFTING) if request.param == "flux" else (sd3, {"shift": 3.0})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, options = make(make_tokenizer, **settings)
    pipe.set_progress_bar_config(disable=True)
    backbone = pipeline_backbone(pipe, ["a red cat"], num_evaluations=MEASURED, options=options)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=MEASURED)
    settings = {"num_trajectories": 2, "responses": {"num_probes": 2}}
    return pipe, options, l2c.Calibration.measure(sampler, true_errors=0, **settings), IMG2IMG[request.param]


def draw(pipe, options, steps, **changes):
    call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent", **options, **changes}
    return pipe("a red cat", generator=torch.Generator().manual_seed(0), **call).images


def schedule_of(pipe):
    return denoiser_of(pipe)._diffusers_hook.get_hook(ROOT).schedule


def share(calibration, graph):
    return calibration.cost.evaluations_worth(graph) / graph.num_evaluations


@pytest.mark.parametrize("steps", [5, MEASURED, 13])
def test_any_number_of_steps_gets_a_graph_of_the_budget(calibrated, steps):
    pipe, options, calibration, _ = calibrated
    plain = draw(pipe, options, steps)
    with l2c.applied(pipe, calibration, budget=BUDGET):
        cached = draw(pipe, options, steps)
        graph = schedule_of(pipe).graph
        assert graph.num_evaluations == steps
        assert share(calibration, graph) == pytest.approx(BUDGET, abs=0.08)
        assert not torch.equal(cached, plain)
    if steps == MEASURED:
        assert graph.rows == calibration.graph(BUDGET).rows
    with l2c.applied(pipe, graph):  # the same graph as a finished one
        assert torch.equal(draw(pipe, options, steps), cached)
    assert torch.equal(draw(pipe, options, steps), plain)


def test_rows_are_made_once_for_each_schedule(calibrated, monkeypatch):
    pipe, options, calibration, _ = calibrated
    made = []
    gram = policies.gram
    monkeypatch.setattr(policies, "gram", lambda *given, **more: made.append(1) or gram(*given, **more))
    with l2c.applied(pipe, calibration, budget=0.8):
        for steps in (6, 7, 6, 7):
            draw(pipe, options, steps)
    count = len(made)
    assert count <= 4  # layers and whole output at the measured times, one of them at those of each schedule
    with l2c.applied(pipe, calibration, budget=0.8):  # remembered by the calibration
        draw(pipe, options, 6)
    assert len(made) == count


def test_another_resolution_shifts_the_times(calibrated):
    pipe, options, calibration, _ = calibrated
    if not pipe.scheduler.config.use_dynamic_shifting:
        pytest.skip("this pipeline's times do not depend on the resolution")
    with l2c.applied(pipe, calibration, budget=BUDGET):
        times = []
        for size in (8, 16):
            draw(pipe, {**options, "height": size, "width": size}, MEASURED)
            graph = schedule_of(pipe).graph
            times.append(graph.timesteps)
            assert share(calibration, graph) == pytest.approx(BUDGET, abs=0.08)
    assert times[0] == calibration.binding.timesteps
    assert max(abs(a - b) for a, b in zip(*times, strict=True)) > 0.02


def test_a_strength_gets_a_graph_of_the_trajectory_that_runs(calibrated):
    pipe, options, calibration, name = calibrated
    image_to_image = getattr(diffusers, name)(**{k: v for k, v in pipe.components.items() if v is not None})
    image_to_image.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def run(strength):
        return draw(image_to_image, options, 12, image=image, strength=strength)

    plain = run(0.5)
    with l2c.applied(image_to_image, calibration, budget=BUDGET):
        cached = run(0.5)
        graph = schedule_of(image_to_image).graph
        assert graph.num_evaluations == 6
        assert graph.timesteps[0] < calibration.binding.timesteps[0]
        assert share(calibration, graph) == pytest.approx(BUDGET, abs=0.08)
        run(1.0)
        assert schedule_of(image_to_image).graph.num_evaluations == 12
        assert torch.equal(run(0.5), cached)
        assert not torch.equal(cached, plain)


def test_a_pipeline_made_from_the_parts_of_another_is_followed(calibrated):
    """Also where the other was called with fewer steps before, or is gone."""
    pipe, options, calibration, _ = calibrated
    first, second = (type(pipe)(**pipe.components) for _ in range(2))
    for made in (first, second):
        made.set_progress_bar_config(disable=True)
    draw(first, options, 5)
    with l2c.applied(first, calibration, budget=BUDGET):
        cached = draw(second, options, 9)
        assert schedule_of(first).graph.num_evaluations == 9
        del first, made
        assert torch.equal(draw(second, options, 9), cached)
        draw(second, options, 6)
        assert schedule_of(second).graph.num_evaluations == 6


def test_a_call_of_one_evaluation_computes_it(calibrated):
    pipe, options, calibration, _ = calibrated
    plain = draw(pipe, options, 1)
    with l2c.applied(pipe, calibration, budget=BUDGET):
        assert torch.equal(draw(pipe, options, 1), plain)
        graph = schedule_of(pipe).graph
        assert graph.rows == ((True,) * graph.num_layers,)


def test_a_call_that_ends_early_gets_a_graph_of_its_evaluations(calibrated):
    pipe, options, calibration, _ = calibrated
    draw(pipe, options, 12)
    makes = calibration.preferred(BUDGET)
    rows = CalibratedRows(makes, BUDGET, l2c.CacheGraph.blank(makes.binding))
    times = tuple(float(t) / 1000 for t in pipe.scheduler.timesteps)
    graph, given = rows.at(times, times[2], pipe.scheduler, 9)
    assert (graph.timesteps, len(given)) == (times[2:9], 7)
    assert share(calibration, graph) == pytest.approx(BUDGET, abs=0.08)


def test_a_calibration_of_two_evaluations_makes_graphs_of_more(calibrated):
    pipe, options, _, _ = calibrated
    backbone = pipeline_backbone(pipe, ["a red cat"], num_evaluations=2, options=options)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=2)
    calibration = l2c.Calibration.measure(sampler, true_errors=0, num_trajectories=1)
    with l2c.applied(pipe, calibration, budget=BUDGET):
        draw(pipe, options, 3)
        assert schedule_of(pipe).graph.num_evaluations == 3


def test_the_rung_of_a_ladder_is_applied(calibrated):
    pipe, options, calibration, _ = calibrated
    ladder = calibration.ladder([0.8, 0.65])
    with l2c.applied(pipe, ladder, budget=0.7):
        draw(pipe, options, MEASURED)
        assert schedule_of(pipe).graph.rows == ladder[1].rows


def test_what_was_not_measured_is_refused_in_one_sentence(calibrated):
    pipe, options, calibration, _ = calibrated
    for budget, sentence in ((None, "say which, budget=0.5"), ("half", "a budget is a share")):
        with pytest.raises(ValueError, match=sentence), l2c.applied(pipe, calibration, budget=budget):
            draw(pipe, options, 5)
    with pytest.raises(ValueError, match="resample=True is for a finished graph"):
        l2c.apply(pipe, calibration, budget=0.5, resample=True)
    with pytest.raises(ValueError, match="of one denoiser from the pipeline's scheduler, got"):
        l2c.apply(denoiser_of(pipe), calibration, budget=0.5)
    with pytest.raises(ValueError, match=r"budget is for an l2c.Calibration or an l2c.Ladder, got CacheGraph"):
        l2c.apply(pipe, calibration.graph(0.7), budget=0.5)
    with pytest.raises(ValueError, match=r"got 'mine.safetensors'; .* give l2c.Calibration.load\(PATH\)"):
        l2c.apply(pipe, "mine.safetensors", budget=0.5)
    with pytest.raises(ValueError, match="a ladder holds graphs of several budgets; say which"):
        l2c.apply(pipe, calibration.ladder([0.7]))
    with l2c.applied(pipe, calibration, budget=0.01), pytest.raises(ValueError, match="is out of reach"):
        draw(pipe, options, 5)
    scheduler = pipe.scheduler
    try:
        pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
        with pytest.raises(ValueError, match=r"got FlowMatchHeun.* or measure a calibration with these$"):
            l2c.apply(pipe, calibration, budget=0.5)
    finally:
        pipe.scheduler = scheduler
    weight = denoiser_of(pipe).proj_out.weight
    before = weight.clone()
    weight.mul_(1.01)
    with pytest.raises(ValueError, match="made for other weights"):
        l2c.apply(pipe, calibration, budget=0.5)
    weight.copy_(before)
    with l2c.applied(pipe, calibration, budget=0.5):
        draw(pipe, options, 5)


def grid_of(scheduler, first=0):
    scheduler.set_timesteps(10)
    return Grid.of(SchedulerSolver(scheduler, scheduler.timesteps.tolist(), first=first))


def test_a_scheduler_that_clips_moves_states_as_one_that_does_not():
    clipping, plain = (grid_of(diffusers.DDIMScheduler(clip_sample=clip)) for clip in (True, False))
    assert clipping.coefficients == pytest.approx(plain.coefficients)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_a_trajectory_from_the_middle_has_the_steps_of_the_whole(kind):
    scheduler = getattr(diffusers, kind)()
    whole, part = grid_of(scheduler), grid_of(scheduler, first=4)
    assert part.timesteps == whole.timesteps[4:]
    assert part.coefficients[1:] == pytest.approx(whole.coefficients[5:])  # a multistep solver starts anew
