"""Graphs of whole outputs inside pipelines: against outputs replaced by hand, by what the pipeline itself runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from tiny_pipelines import tiny_pipeline

import l2c
from l2c.integrations.diffusers import layers
from l2c.integrations.diffusers.denoisers import denoisers_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.policies.calibration import OfBoth
from l2c.policies.context import PolicyContext

STEPS = 5
ROWS = ((True,), (True,), (False,), (True,), (False,))


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline("pixart")


def call(pipe, **more):
    small = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    seeded = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=STEPS, output_type="latent", generator=seeded, **small, **more).images


def graph_of(pipe, reuse="hold"):
    small = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    backbone = pipeline_backbone(pipe, ["a cat"], num_evaluations=STEPS, of=("output",), options=small)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=4.5)
    return PolicyContext.of(sampler).blank.replace(rows=ROWS, routed=(2, 4), reuse=(reuse,) * STEPS)


def replaced_by_hand(pipe, reuse):
    """Return the latents of a call in which the transformer's outputs are replaced where ROWS says so."""
    model, past, times = pipe.transformer, [], []
    plain = model.forward

    def forward(*args, **kwargs):
        e, t = len(times), float(kwargs["timestep"].max())
        times.append(t)
        if ROWS[e][0]:
            output = plain(*args, **kwargs)
            past.append((t, output[0].clone()))
            return output
        (t0, before), (t1, last) = past[-2:]
        slope = (t - t1) / (t1 - t0) if reuse == "linear" else 0.0
        return (last + slope * (last - before),)

    model.forward = forward
    try:
        return call(pipe)
    finally:
        del model.forward


@pytest.mark.parametrize("reuse", ["hold", "linear"])
def test_outputs_are_those_replaced_by_hand(pipe, reuse):
    graph = graph_of(pipe, reuse)
    plain, expected = call(pipe), replaced_by_hand(pipe, reuse)
    l2c.apply(pipe, graph)
    cached, again = call(pipe), call(pipe)
    assert torch.allclose(cached, expected, atol=1e-5)
    assert torch.equal(cached, again)
    assert not torch.allclose(cached, plain, atol=1e-3)
    l2c.remove(pipe)
    assert torch.equal(call(pipe), plain)


def test_a_caller_may_change_the_output_in_place(pipe):
    graph = graph_of(pipe)
    model, given = pipe.transformer, {}
    look = model.register_forward_hook(lambda module, args, kwargs, output: given.update(kwargs), with_kwargs=True)
    call(pipe)
    look.remove()
    given.pop("return_dict", None)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    l2c.apply(model, graph)

    def outputs(spoil):
        results = []
        for t in graph.timesteps:
            output = model(x, **{**given, "timestep": torch.full((2,), t)}, return_dict=len(results) % 2 == 0)[0]
            results.append(output.clone())
            if spoil:
                output.zero_()
        return results

    for ours, theirs in zip(outputs(True), outputs(False), strict=True):
        assert torch.equal(ours, theirs)


def test_a_reused_evaluation_runs_no_module_of_the_model(pipe):
    ran = []
    pipe.transformer.pos_embed.register_forward_hook(lambda *_: ran.append(1))
    graph = graph_of(pipe)
    ran.clear()
    l2c.apply(pipe, graph)
    call(pipe)
    assert len(ran) == sum(row[0] for row in ROWS)


def test_memory_is_one_latent_for_each_kept_output(pipe):
    graph = graph_of(pipe, "linear")
    l2c.apply(pipe.transformer, graph)
    hook = pipe.transformer._diffusers_hook.get_hook("l2c_cache_graph")
    sizes = []
    pipe.transformer.register_forward_hook(lambda *_: sizes.append(hook.cached_bytes))
    call(pipe)
    branches, channels = 2, pipe.transformer.config.out_channels
    assert max(sizes) == 2 * branches * channels * 8 * 8 * 4


def test_accelerate_takes_the_kind_of_layers(make_pipeline, tmp_path):
    pipe, prompts = make_pipeline("dit"), [3]
    settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
    graph = l2c.accelerate(pipe, prompts, budget=3, layers="output", folder=tmp_path, num_trajectories=2, **settings)
    assert graph.layers == ("output",)
    assert sum(row[0] for row in graph.rows) == 3
    ran = []
    (model,) = denoisers_of(pipe).values()
    next(m for m in model.modules() if type(m).__name__.endswith("Block")).register_forward_hook(
        lambda *_: ran.append(1)
    )
    seeded = torch.Generator().manual_seed(0)
    pipe(prompts, output_type="np", generator=seeded, **settings)
    assert len(ran) == 3
    assert len(list(Path(tmp_path).iterdir())) == 1
    other = l2c.accelerate(pipe, prompts, budget=3, layers="block", folder=tmp_path, num_trajectories=2, **settings)
    assert other.layers != ("output",)
    assert len(list(Path(tmp_path).iterdir())) == 2


def test_output_stands_alone(pipe):
    assert find_layers(pipe.transformer, of=("output",)) == ("output",)
    with pytest.raises(ValueError, match=r"layers of kind output stand alone, got output, block; say \[output\]"):
        find_layers(pipe.transformer, of=("output", "block"))
    with pytest.raises(ValueError, match="layers is empty; give one of layer, block, resnet, output at least"):
        find_layers(pipe.transformer, of=())
    with pytest.raises(ValueError, match="unknown kind of layers 'l'; known are layer, block, resnet, output"):
        find_layers(pipe.transformer, of=tuple("layer"))


def test_one_kind_of_layers_may_stand_without_brackets(make_pipeline):
    for of in ("output", ["output"]):
        backbone = pipeline_backbone(make_pipeline("dit"), [3], num_evaluations=STEPS, guidance_scale=3.0, of=of)
        assert backbone.layer_names == ("output",)


def test_a_model_without_usual_layers_has_its_whole_output_as_one(caplog, monkeypatch):
    tiny = tiny_pipeline("kandinsky3")
    monkeypatch.setattr(layers, "_with_attention", lambda _: [])
    made = {"num_evaluations": STEPS, "options": tiny.options}
    assert pipeline_backbone(tiny.pipe, tiny.prompts, **made).layer_names == ("output",)
    assert "found no layers of kind block in Kandinsky3UNet" in caplog.text
    with pytest.raises(ValueError, match=r"take its whole output, layers=\['output'\], or wrap it"):
        pipeline_backbone(tiny.pipe, tiny.prompts, **made, of=("block",))


MIXED = {
    1: (True, True),
    2: (False, False),
    3: (False, True),
    4: (False, False),
}  # (one layer computes, the model runs)


def mixed_by_hand(pipe, layer):
    """Return the latents of a call in which one layer and the model's output are held where MIXED says so."""
    model, module, kept = pipe.transformer, pipe.transformer.get_submodule(layer), {}
    plain, of_layer, calls = model.forward, module.forward, []

    def layer_forward(*args, **kwargs):
        if MIXED.get(len(calls) - 1, (True, True))[0]:
            kept["layer"] = of_layer(*args, **kwargs)
        return kept["layer"]

    def forward(*args, **kwargs):
        calls.append(1)
        if MIXED.get(len(calls) - 1, (True, True))[1]:
            kept["output"] = plain(*args, **kwargs)
        return (kept["output"][0].clone(),)

    model.forward, module.forward = forward, layer_forward
    try:
        return call(pipe)
    finally:
        del model.forward, module.forward


def test_layers_and_outputs_are_those_replaced_by_hand(pipe, tmp_path):
    own = find_layers(pipe.transformer)
    layer = own[0]
    blank = graph_of(pipe).binding
    rows = [[True] * len(own) + [True] for _ in range(STEPS)]
    for e, (computes, runs) in MIXED.items():
        rows[e] = [computes, *[True] * len(own)] if runs else [False] * (len(own) + 1)
    graph = l2c.CacheGraph.blank(replace(blank, layers=(*own, "output")), rows=rows)
    graph.save(tmp_path / "graph.json")
    plain, expected = call(pipe), mixed_by_hand(pipe, layer)
    ran = []
    pipe.transformer.get_submodule(own[-1]).register_forward_hook(lambda *_: ran.append(1))
    l2c.apply(pipe, tmp_path / "graph.json")
    cached, again = call(pipe), call(pipe)
    assert torch.allclose(cached, expected, atol=1e-5)
    assert torch.equal(cached, again)
    assert len(ran) == 2 * sum(row[-1] for row in rows)
    assert not torch.allclose(cached, plain, atol=1e-3)
    l2c.remove(pipe)
    assert torch.equal(call(pipe), plain)


def test_a_calibration_of_both_is_applied_at_any_number_of_steps(pipe):
    small = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    backbone = pipeline_backbone(pipe, ["a cat"], num_evaluations=8, options=small)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=8, cfg_scale=4.5)
    how = {"num_trajectories": 2, "batch_size": 1, "responses": {"num_probes": 2}}
    calibration = l2c.Calibration.measure(sampler, true_errors=0, **how)
    both = OfBoth(calibration)
    graph = both.graph(0.5)
    expected = l2c.Sampler(backbone, graph=graph, cfg_scale=4.5).sample([0], seed=0)
    assert expected.isfinite().all()
    seeded = torch.Generator().manual_seed(0)
    with l2c.applied(pipe, graph):
        fixed = pipe("a cat", num_inference_steps=8, output_type="latent", generator=seeded, **small).images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l2c.Calibration, "preferred", lambda self, budget: both)
        l2c.apply(pipe, calibration, budget=0.5)
    seeded = torch.Generator().manual_seed(0)
    made = pipe("a cat", num_inference_steps=8, output_type="latent", generator=seeded, **small).images
    assert torch.allclose(made, fixed, atol=1e-5)
    assert pipe("a cat", num_inference_steps=6, output_type="latent", **small).images.isfinite().all()
    l2c.remove(pipe)
