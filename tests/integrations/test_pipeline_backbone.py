"""Pipelines as backbones: a sampler over recorded conditions draws what the pipeline itself draws."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

import l2c
from l2c.calibration.changes import measure_changes
from l2c.calibration.cost import count_macs
from l2c.calibration.measurements import Measurements
from l2c.diffusion import Guidance
from l2c.integrations.diffusers import apply, denoiser_of
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.prompts import prompt_lines, read_prompts
from l2c.integrations.diffusers.recorded import recording
from l2c.integrations.diffusers.recorded.steps import RecordedStep
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import TrajectoryPairs
from l2c.training.routers.routers import Routers

NAMES = ("dit", "pixart", "stable_diffusion")
STEPS = 5


def backbone_of(pipe):
    by_class = type(pipe).__name__ == "DiTPipeline"
    return pipeline_backbone(
        pipe, [3, 7] if by_class else ["a cat", "a red dog"], num_evaluations=STEPS, options=sizes(pipe)
    )


def sizes(pipe):
    small = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    return small if "PixArt" in type(pipe).__name__ else {}


def latents_of(pipe, noise, prompts, scale):
    """Return what the pipeline hands to its autoencoder."""
    caught = []

    def catch(z, *args, **kwargs):
        caught.append(z * pipe.vae.config.scaling_factor)
        raise KeyboardInterrupt

    decode, pipe.vae.decode = pipe.vae.decode, catch
    by_class = type(pipe).__name__ == "DiTPipeline"
    given = {"class_labels": prompts} if by_class else {"prompt": prompts, "latents": noise.clone()}
    generator = torch.Generator().manual_seed(0)
    options = {"guidance_scale": scale, "num_inference_steps": STEPS, "generator": generator, **sizes(pipe)}
    try:
        with pytest.raises(KeyboardInterrupt):
            pipe(**given, **options)
    finally:
        pipe.vae.decode = decode
    return caught[0]


@pytest.mark.parametrize("name", NAMES)
def test_sampler_and_pipeline_agree_cached_and_not(name, make_pipeline, random_rows):
    pipe = make_pipeline(name)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    backbone = backbone_of(pipe)
    assert backbone.num_labels == 2
    prompts = [3, 7] if name == "dit" else ["a cat", "a red dog"]
    rows = random_rows(STEPS, backbone.num_layers, seed=1)
    for graph_rows in (None, rows):
        scheduler = backbone.own_solver.name
        sampler = l2c.Sampler(backbone, solver=scheduler, num_evaluations=STEPS, cfg_scale=3.0)
        if graph_rows is not None:
            graph = PolicyContext.of(sampler).blank.replace(rows=graph_rows, routed=None)
            sampler = l2c.Sampler(backbone, graph=graph, cfg_scale=3.0)
            apply(pipe, graph)
        ours = sampler.sample([0, 1], noise=noise)
        torch.testing.assert_close(ours, latents_of(pipe, noise, prompts, 3.0), rtol=1e-3, atol=1e-3)


def test_policies_and_routers_need_nothing_new(make_pipeline):
    pipe = make_pipeline("pixart")
    backbone = backbone_of(pipe)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=3.0)
    noise, labels = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    calibration = Measurements(measure_changes(sampler, labels, noise), PolicyContext.of(sampler).blank.binding)
    graph = make_graph("block_caching", PolicyContext.of(sampler, calibration), budget=0.7)
    cost = count_macs(backbone)
    assert cost.evaluations_worth(graph) == pytest.approx(0.7 * STEPS, abs=0.3)
    assert set(graph.layers) == {
        f"transformer_blocks.{b}.{kind}" for b in range(3) for kind in ("attn1", "attn2", "ff")
    }
    graph = l2c.CacheGraph.from_json(graph.to_json())
    apply(pipe, graph)  # its fingerprint is that of the pipeline's weights
    routers = Routers((2, 4), backbone.num_layers, init=0.0)
    pairs = TrajectoryPairs(backbone, sampler.solver, (2, 4), guidance=Guidance("cfg", 3.0))
    objective = LearningToCache(backbone, penalty=0.0, layer_weights=torch.ones(backbone.num_layers))
    objective(pairs.draw((noise, labels), 0), routers.row(2)).loss.backward()
    assert next(p.grad for p in routers.parameters() if p.grad is not None).abs().min() > 0


def test_schedulers_with_a_scale_of_noise(make_pipeline):
    pipe = make_pipeline("stable_diffusion")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    backbone = backbone_of(pipe)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=3.0)
    expected = latents_of(pipe, noise, ["a cat", "a red dog"], 3.0)
    torch.testing.assert_close(sampler.sample([0, 1], noise=noise), expected, rtol=1e-3, atol=1e-3)


def test_a_scheduler_that_a_pipeline_began_half_way_begins_anew(make_pipeline):
    pipe = make_pipeline("stable_diffusion")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(STEPS)
    times = tuple(pipe.scheduler.timesteps.tolist())
    noise = torch.ones(1, 4, 8, 8)

    def final():
        trajectory = SchedulerSolver(pipe.scheduler, times).trajectory(noise)
        next(trajectory)
        try:
            while True:
                trajectory.send(noise)
        except StopIteration as end:
            return end.value

    plain = final()
    pipe.scheduler.set_begin_index(2)
    pipe.scheduler.scale_model_input(noise, pipe.scheduler.timesteps[2])  # of image-to-image
    assert torch.equal(final(), plain)


def test_a_pipeline_that_takes_one_prompt_a_call(make_pipeline, monkeypatch):
    pipe = make_pipeline("stable_diffusion")
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def images():
        backbone = backbone_of(pipe)
        sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=3.0)
        return backbone.lengths_differ, sampler.sample([0, 1, 1], noise=noise)

    apart, expected = images()
    assert not apart
    plain = type(pipe).__call__

    @functools.wraps(plain)
    def one_at_a_time(self, prompt, **options):
        if len(prompt) > 1:
            raise RuntimeError("Sizes of tensors must match")
        return plain(self, prompt, **options)

    monkeypatch.setattr(type(pipe), "__call__", one_at_a_time)
    apart, alone = images()
    assert not apart  # the axes are those of its guided call
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(RecordedStep, "unconditional", lambda *args: None)
    monkeypatch.setattr(recording, "twice_of", lambda option: option)
    monkeypatch.setattr(recording, "first_step", lambda *args, **settings: RecordedStep())
    apart, alone = images()  # without a guided call
    assert apart
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)


def test_a_call_that_breaks_is_named(make_pipeline):
    with pytest.raises(ValueError, match=r"DiTPipeline failed when it was called .*TypeError: .*colour.*options"):
        pipeline_backbone(make_pipeline("dit"), [3], num_evaluations=STEPS, options={"colour": "red"})


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("\ufeffa red cat\nb\n\n \n", ["a red cat", "b"]),
        ("a\r\nb\rc", ["a", "b", "c"]),
        ("a\x0cb\x1cc\u2028d\x85e\n f", ["a\x0cb\x1cc\u2028d\x85e", "f"]),
    ],
)
def test_prompts_are_the_lines_of_a_file(content, lines, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content.encode())
    assert prompt_lines(str(file)) == lines


@pytest.mark.parametrize(("content", "line"), [("\na\n", 1), ("\ufeff\na", 1), ("a\n\u3000\nb", 2), ("a\n\n\nb", 2)])
def test_an_empty_line_before_others_is_named_by_its_number(content, line, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content.encode())
    with pytest.raises(ValueError, match=rf"line {line} of the prompt file .*prompts.txt is empty; remove it"):
        prompt_lines(str(file))


def test_bad_input_is_one_sentence(make_pipeline, tmp_path):
    pipe = make_pipeline("dit")
    file = tmp_path / "prompts.txt"
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts.txt is empty; write one prompt"):
        read_prompts(str(file), pipe)
    file.write_text("3\ncat\n")
    with pytest.raises(ValueError, match=r"'cat' is no class label; this pipeline takes 0..999"):
        read_prompts(str(file), pipe)
    with pytest.raises(FileNotFoundError, match="no prompt file at nowhere"):
        read_prompts("nowhere", pipe)
    with pytest.raises(ValueError, match="read with DDIMScheduler and 5 steps, got ddim and 5"):
        l2c.Sampler(backbone_of(pipe), solver="ddim", num_evaluations=5)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="HeunDiscreteScheduler evaluates at t = "):
        backbone_of(pipe)
    assert not any(module._forward_pre_hooks for module in denoiser_of(pipe).modules())
