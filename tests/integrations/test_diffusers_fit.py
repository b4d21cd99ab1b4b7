"""What a pipeline is called with is checked by the same rules, in the same words, as a sampler's arguments."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import tiny_pipeline

import l2c
from l2c.backbones.digest import known_digest
from l2c.backbones.whole_output import WholeOutput
from l2c.calibration.measured_cost import measure_macs
from l2c.integrations.diffusers import apply, denoiser_of, fit, remove
from l2c.integrations.diffusers.adapters import precisions_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
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


def test_weights_of_16_bits_that_were_the_graphs_are_compared(pipe):
    pipe.to(torch.bfloat16)
    model = denoiser_of(pipe)
    apply(pipe, graph_of(pipe, fingerprint=known_digest(model, model.state_dict())))
    draw(pipe)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="weights changed after the graph was applied"):
        draw(pipe)


def test_weights_some_of_which_are_rounded_are_not_compared(pipe, caplog):
    """Whichever the first one is: some models keep it in 32 bits."""
    model = denoiser_of(pipe)
    graph = graph_of(pipe, fingerprint="sha256:" + "0" * 64)
    first, *_, last = model.parameters()
    for rounded in (first, last):
        with pytest.raises(ValueError, match="made for other weights"):
            apply(pipe, graph)
        rounded.data = rounded.data.bfloat16()
        apply(pipe, graph)
        remove(pipe)
        assert "which may be because they are bfloat16 and float32" in caplog.messages[-1]
        rounded.data = rounded.data.float()


@pytest.mark.parametrize("readable", [True, False])
def test_weights_that_were_not_compared_are_digested_once(pipe, caplog, monkeypatch, readable):
    """A change of them can say nothing new, LoRA switched on and off least of all."""
    pipe.to(torch.bfloat16)
    digests = []

    def digest(model, weights):
        digests.append(model)
        if readable:
            return known_digest(model, weights)
        raise ValueError("the weight first is on the meta device; load plain weights")

    monkeypatch.setattr(fit, "known_digest", digest)
    apply(pipe, graph_of(pipe, fingerprint="sha256:" + "0" * 64))
    for _ in range(2):
        with torch.no_grad():
            next(denoiser_of(pipe).parameters()).mul_(1.5)
        draw(pipe)
    told = [message for message in caplog.messages if "the weights of" in message]
    assert len(digests) == len(told) == 1
    assert ("which may be because they are bfloat16" in told[0]) is readable
    assert told[0].endswith("made with: the weight first is on the meta device; load plain weights") is not readable


def test_an_adapter_of_16_bits_does_not_keep_weights_from_being_compared():
    peft = pytest.importorskip("peft", reason="needs the package peft: pip install '.[dev]'")
    model = tiny_pipeline("flux").pipe.transformer
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), "new")
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.bfloat16()
    assert precisions_of(model) == {torch.float32}


@pytest.mark.parametrize("name", ["flux", "sd3", "wan21"])
def test_a_graph_holds_under_layerwise_casting(name):
    tiny = tiny_pipeline(name)
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    layers = find_layers(model)
    backbone = pipeline_backbone(pipe, tiny.prompts, num_evaluations=STEPS, options=tiny.options)
    graph = l2c.CacheGraph(
        rows=((True,) * len(layers),) * STEPS,
        layers=layers,
        timesteps=backbone.own_solver.timesteps,
        model=type(model).__name__,
        solver=type(pipe.scheduler).__name__,
        fingerprint=known_digest(model),
    )
    apply(pipe, graph)
    tiny.draw()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    cached = tiny.draw()
    apply(pipe, graph)
    remove(pipe)
    assert torch.equal(tiny.draw(), cached)
    again = pipeline_backbone(pipe, tiny.prompts, num_evaluations=STEPS, options=tiny.options)
    assert measure_macs(again) == measure_macs(backbone)  # which gives inputs of the type that the model computes in


def test_inputs_are_of_the_type_that_most_weights_have(tmp_path):
    """Wan keeps its first weight in 32 bits."""
    tiny = tiny_pipeline("wan21")
    tiny.pipe.transformer.save_pretrained(tmp_path)
    model = type(tiny.pipe.transformer).from_pretrained(tmp_path, dtype=torch.bfloat16)
    tiny.pipe.transformer = model
    assert next(model.parameters()).dtype == torch.float32
    backbone = pipeline_backbone(tiny.pipe, tiny.prompts, num_evaluations=STEPS, options=tiny.options)
    assert backbone.dtype == WholeOutput(backbone).dtype == torch.bfloat16
    assert sum(measure_macs(backbone)[0]) > 0


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
