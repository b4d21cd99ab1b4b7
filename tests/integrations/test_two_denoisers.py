"""Pipelines with two denoisers that share a trajectory: Wan 2.2's experts, and a branch for each."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.hooks import HookRegistry
from tiny_parts import make_t5
from tiny_pipelines import tiny_pipeline
from whole_pipelines import calibrated_as_drawn

import l2c
from l2c.integrations.diffusers import ROOT, CacheGraphs, applied, apply, placing, remove
from l2c.integrations.diffusers.denoisers import denoisers_in
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.placing import put, root_of
from l2c.integrations.diffusers.recorded.answers import Answers
from l2c.integrations.diffusers.recorded.turns import Turns, check_turns, graphs_of, turns_of
from l2c.sampling.binding import binding_of

STEPS = 6
SIZES = {"height": 16, "width": 16, "num_frames": 1}


def transformer(seed):
    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=24,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return model.eval().requires_grad_(False)


@pytest.fixture
def pipe(tokenizer):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipe = WanPipeline(
        tokenizer=tokenizer(7),
        text_encoder=make_t5(),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer(1),
        transformer_2=transformer(2),
        boundary_ratio=0.8,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe):
    noise = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "max_sequence_length": 7, **SIZES}
    return pipe("a red cat", latents=noise, output_type="latent", **call).frames


def counted(model):
    calls = []
    model.blocks[0].attn1.to_q.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def graphs(pipe, reuse=True):
    """Return graphs of one reused evaluation in three for both denoisers, at the times of each."""
    pipe.scheduler.set_timesteps(STEPS)
    times = [float(t) for t in pipe.scheduler.timesteps]
    layers = find_layers(pipe.transformer)
    made = {}
    for name, part in (
        ("transformer", [t for t in times if t >= 800]),
        ("transformer_2", [t for t in times if t < 800]),
    ):
        rows = tuple((e == 0 or not reuse,) * len(layers) for e in range(len(part)))
        graph = l2c.CacheGraph(
            rows=rows,
            layers=layers,
            timesteps=part,
            model="WanTransformer3DModel",
            solver="UniPCMultistepScheduler",
        )
        made[name] = graph
    return CacheGraphs(made)


def test_each_denoiser_gets_its_rows(pipe, tmp_path):
    plain = latents(pipe)
    both = graphs(pipe)
    both.save(tmp_path / "graphs.json")
    both = CacheGraphs.load(tmp_path / "graphs.json")
    assert dict(both) == dict(graphs(pipe))
    calls = [counted(pipe.transformer), counted(pipe.transformer_2)]
    with applied(pipe, both):
        cached = latents(pipe)
        assert [len(ran) for ran in calls] == [1, 1]
        assert torch.equal(latents(pipe), cached)
    assert not torch.equal(cached, plain)
    assert torch.equal(latents(pipe), plain)
    with applied(pipe, graphs(pipe, reuse=False)):
        assert torch.equal(latents(pipe), plain)


def test_calibrated_as_one_trajectory_and_split(pipe):
    options = {"max_sequence_length": 7, **SIZES}
    backbone = pipeline_backbone(pipe, ["a red cat"], num_evaluations=STEPS, options=options)
    noise = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS)
    torch.testing.assert_close(sampler.sample([0], noise=noise), latents(pipe), rtol=1e-4, atol=1e-4)
    boundary = next(e for e, t in enumerate(sampler.timesteps) if t < 800)
    rows = [(e in (0, boundary) or e % 2 == 1,) * backbone.num_layers for e in range(STEPS)]
    graph = l2c.CacheGraph(
        rows=tuple(rows),
        layers=backbone.layer_names,
        timesteps=sampler.timesteps,
        model="WanTransformer3DModel",
        solver="UniPCMultistepScheduler",
    )
    ours = l2c.Sampler(backbone, graph=graph).sample([0], noise=noise)
    with applied(pipe, graphs_of(graph, backbone)):
        torch.testing.assert_close(ours, latents(pipe), rtol=1e-4, atol=1e-4)


def turns(pipe, steps=STEPS):
    settings = {"prompt": ["a red cat"], "num_inference_steps": steps, "max_sequence_length": 7, **SIZES}
    return turns_of(pipe, settings, steps, Answers())


def test_turns_are_those_of_the_modules_called(pipe):
    found = turns(pipe)
    assert found.experts
    for boundary in (0.8, 0.5):  # which the pipeline follows
        pipe.register_to_config(boundary_ratio=boundary)
        found = turns(pipe)
        times = [float(t) for t in pipe.scheduler.timesteps]
        first = [found.at(t) is pipe.transformer for t in times]
        assert first == [t >= 1000 * boundary for t in times]
        assert 0 < sum(first) < len(times)
    assert set(found.called) < set(found.joined(turns(pipe, steps=4)).called)
    pipe.register_to_config(boundary_ratio=None)
    with pytest.raises(
        ValueError, match="WanPipeline calls its transformer_2 at none of 6 steps; take more, or take"
    ):
        check_turns(turns(pipe), "WanPipeline")
    pipe.transformer_2 = None
    assert list(turns(pipe).models) == ["transformer"]


def test_each_branch_is_made_by_a_denoiser_of_its_own():
    tiny = tiny_pipeline("ideogram4")
    backbone = pipeline_backbone(tiny.pipe, tiny.prompts, num_evaluations=3, options=tiny.options)
    assert not backbone.turns.experts
    y = torch.tensor([2, 0, 1, 2])  # 2 = none
    assert [part.tolist() for part in backbone.parts(y)] == [[1, 2], [0, 3]]
    x, t = torch.randn(4, *backbone.input_shape), torch.full((4,), backbone.usual_time)
    calls = [counted_first(model) for model in backbone.turns.models.values()]
    together = backbone(x, t, y)
    assert calls == [[2], [2]]  # rows of a batch
    alone = torch.cat([backbone(x[i : i + 1], t[:1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def counted_first(model):
    rows = []
    model.input_proj.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


def test_denoisers_that_no_graph_follows_are_refused(pipe):
    one, two = pipe.transformer, pipe.transformer_2
    with pytest.raises(ValueError, match="at some steps and one at others"):
        check_turns(Turns({"a": one, "b": two}, {2.0: ("a", "b"), 1.0: ("a",)}), "P")
    with pytest.raises(ValueError, match="classes WanTransformer3DModel and Linear in one trajectory"):
        check_turns(Turns({"a": one, "b": torch.nn.Linear(1, 1)}, {2.0: ("a",), 1.0: ("b",)}), "P")
    check_turns(Turns({"a": one, "b": two}, {2.0: ("a", "b"), 1.0: ("a", "b")}), "P")


class Noisy(torch.nn.Module):
    def forward(self, sample, timestep):
        """Predict."""


class Steering(torch.nn.Module):
    def forward(self, sample, timestep, conditioning_scale=1.0):
        """Return what steers another network."""


class Parts:
    def __init__(self, **parts):
        vars(self).update(parts)


def test_denoisers_are_the_parts_that_take_a_time_and_predict():
    one, two, other = Noisy(), Noisy(), torch.nn.Linear(1, 1)
    parts = {"vae": other, "scheduler": "s", "decoder": one, "controlnet": Steering(), "_kept": Noisy()}
    assert denoisers_in(Parts(**parts)) == {"decoder": one}
    assert denoisers_in(Parts(**parts, uncond=two, once_more=one)) == {"decoder": one, "uncond": two}
    stages = {"prior_scheduler": "s", "prior_prior": two, "prior": Noisy(), "priority": one}
    assert denoisers_in(Parts(scheduler="s", **stages)) == {"priority": one}
    assert denoisers_in(Parts(unet=other)) == {"unet": other}  # whose forward does not say what it takes
    assert denoisers_in(None) == {}


def test_the_scale_of_the_second_denoiser_belongs_to_the_graphs(caplog):
    tiny = tiny_pipeline("wan22")
    read = {"num_evaluations": 4, "guidance_scale": 3.0}
    backbone = pipeline_backbone(tiny.pipe, tiny.prompts[:1], **read, options=tiny.options)
    assert backbone.conventions.guidance_options == {"guidance_scale_2": 3.0}  # which the pipeline fills in
    assert not [message for message in caplog.messages if "guides its" in message]
    other = pipeline_backbone(tiny.pipe, tiny.prompts[:1], **read, options={**tiny.options, "guidance_scale_2": 8.0})
    assert not [message for message in caplog.messages if "guides its" in message]
    assert calibrated_as_drawn(replace(tiny, scale=3.0, options={**tiny.options, "guidance_scale_2": 8.0})) == "yes"
    off = {"num_evaluations": 4, "guidance_scale": 1.0, "options": {**tiny.options, "guidance_scale_2": 8.0}}
    pipeline_backbone(tiny.pipe, tiny.prompts[:1], **off)
    (message,) = [message for message in caplog.messages if "guides its" in message]
    assert "WanPipeline guides its transformer_2 by guidance_scale_2=8; it is calibrated at 1 for all" in message
    sampler = l2c.Sampler(other, solver="pipeline", num_evaluations=4, cfg_scale=3.0)
    blank = l2c.CacheGraph.blank(binding_of(other, sampler.solver, weights_bound=True, guidance=sampler.guidance))
    with applied(tiny.pipe, graphs_of(blank, other)):
        tiny.draw(guidance_scale_2=8.0)
        with pytest.raises(ValueError, match=r"made for guidance_scale_2 8.0, got 3.0; .* guidance_scale_2=8.0"):
            tiny.draw()


def test_bad_input_is_one_sentence(pipe, tmp_path):
    both = graphs(pipe)
    with pytest.raises(ValueError, match="has the denoisers transformer, transformer_2, but there are graphs for tr"):
        apply(pipe, both["transformer"])
    wrong = CacheGraphs({**both, "transformer_2": both["transformer_2"].replace(fingerprint="sha256:" + "0" * 64)})
    with pytest.raises(ValueError, match="other weights"):
        apply(pipe, wrong)
    assert HookRegistry.check_if_exists_or_initialize(pipe.transformer).get_hook(ROOT) is None  # both or none
    with pytest.raises(ValueError, match="cannot tell which timesteps"):
        apply(pipe, both, resample=True)
    both["transformer"].save(tmp_path / "one.json")
    with pytest.raises(ValueError, match="is a cache graph, not graphs of a pipeline"):
        CacheGraphs.load(tmp_path / "one.json")
    remove(pipe)


def test_denoisers_that_share_layers_are_refused_or_keep_their_whole_outputs(pipe, caplog):
    options = {"max_sequence_length": 7, **SIZES}
    pipe.transformer_2.blocks[1] = pipe.transformer.blocks[1]
    sentence = "transformer and transformer_2 share a WanAttention, whose outputs in one would be reused in the other"
    with pytest.raises(ValueError, match=sentence):
        apply(pipe, graphs(pipe))
    assert roots(pipe) == [None, None]
    with pytest.raises(ValueError, match=sentence):
        pipeline_backbone(pipe, ["a red cat"], num_evaluations=STEPS, options=options, of="layer")
    backbone = pipeline_backbone(pipe, ["a red cat"], num_evaluations=STEPS, options=options)
    assert backbone.layer_names == ("output",)
    assert f"{sentence}; its whole output is taken as the one layer" in caplog.messages
    parts = {
        name: graph.replace(layers=("output",), rows=[row[:1] for row in graph.rows])
        for name, graph in graphs(pipe).items()
    }
    with applied(pipe, parts):
        shared = latents(pipe)
    pipe.transformer_2.blocks[1] = copy.deepcopy(pipe.transformer.blocks[1])
    with applied(pipe, parts):
        assert torch.equal(latents(pipe), shared)
    assert not torch.equal(latents(pipe), shared)


def test_a_layer_that_a_controlnet_runs_too_is_reused_in_the_model_alone():
    tiny = tiny_pipeline("sd_controlnet")
    pipe, layers = tiny.pipe, find_layers(tiny.pipe.unet)
    pipe.scheduler.set_timesteps(4)
    graph = l2c.CacheGraph(
        rows=[[e == 0 or (e + i) % 2 == 0 for i in range(len(layers))] for e in range(4)],
        layers=layers,
        timesteps=pipe.scheduler.timesteps.tolist(),
        model="UNet2DConditionModel",
        solver=type(pipe.scheduler).__name__,
    )
    pipe.controlnet.mid_block = copy.deepcopy(pipe.unet.mid_block)
    with applied(pipe, graph):
        apart = tiny.draw(output_type="latent")
    pipe.controlnet.mid_block = pipe.unet.mid_block
    with applied(pipe, graph):
        assert torch.equal(tiny.draw(output_type="latent"), apart)
    with pytest.raises(ValueError, match="unet and ControlNetModel share a Transformer2DModel, whose outputs"):
        pipeline_backbone(pipe, tiny.prompts[:1], num_evaluations=2, options=tiny.options, of="block")


class FromMapping(WanPipeline):
    """A pipeline whose denoisers lie in a mapping."""

    @property
    def transformer(self):
        """Return the first one."""
        return self.experts["high"]

    @property
    def transformer_2(self):
        """Return the second one."""
        return self.experts["low"]


@pytest.mark.parametrize("mapping", [torch.nn.ModuleDict, dict])
def test_denoisers_in_a_mapping_are_found(pipe, mapping, caplog):
    plain, made = latents(pipe), graphs(pipe)
    experts = mapping({"high": pipe.transformer, "low": pipe.transformer_2})
    for name in made:
        delattr(pipe, name)
    pipe.__class__, pipe.experts = FromMapping, experts
    assert denoisers_in(pipe) == {"experts.high": experts["high"], "experts.low": experts["low"]}
    assert list(turns(pipe).models) == ["experts.high", "experts.low"]
    with applied(pipe, {"experts.high": made["transformer"], "experts.low": made["transformer_2"]}):
        assert not torch.equal(latents(pipe), plain)
        experts["low"] = transformer(2)
        latents(pipe)
    (message,) = caplog.messages
    assert "FromMapping.experts.low was replaced after the cache graph was applied" in message


def roots(pipe):
    return [root_of(pipe.transformer), root_of(pipe.transformer_2)]


def test_both_graphs_are_applied_or_those_before_stay(pipe, monkeypatch):
    apply(pipe, graphs(pipe))
    before, cached = roots(pipe), latents(pipe)
    one = pipe.transformer_2.blocks[1]
    one._chunk_size = 1  # of feed-forward chunking: refused when the layers are made
    with pytest.raises(ValueError, match="runs in chunks"):
        apply(pipe, graphs(pipe))
    one._chunk_size = None
    assert roots(pipe) == before

    def interrupted(module, hook, name):
        if module is pipe.transformer_2:
            monkeypatch.undo()
            raise KeyboardInterrupt
        put(module, hook, name)

    monkeypatch.setattr(placing, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply(pipe, graphs(pipe, reuse=False))
    assert roots(pipe) == before
    assert torch.equal(latents(pipe), cached)
    remove(pipe)


def test_another_boundary_after_the_graphs_were_applied_is_refused(pipe, caplog):
    apply(pipe, graphs(pipe))
    cached = latents(pipe)
    for boundary in (0.0001, 0.99):
        pipe.register_to_config(boundary_ratio=boundary)
        with pytest.raises(ValueError, match=r"the model is called at t = .*, but the graph's . evaluations lie at"):
            latents(pipe)
    pipe.register_to_config(boundary_ratio=0.8)
    assert torch.equal(latents(pipe), cached)
    assert not caplog.messages


def test_a_denoiser_put_in_later_is_said_to_run_uncached(pipe, caplog):
    apply(pipe, graphs(pipe))
    latents(pipe)
    assert not caplog.messages
    copied = copy.deepcopy(pipe.scheduler)
    pickle.loads(pickle.dumps(copied))._reset_stateful_cache()
    pipe.transformer_2 = transformer(2)
    calls = counted(pipe.transformer_2)
    latents(pipe)
    assert len(calls) > 1
    (message,) = caplog.messages
    assert "WanPipeline.transformer_2 was replaced after the cache graph was applied" in message
    apply(pipe, graphs(pipe))
    latents(pipe)
    pipe.transformer_2 = transformer(2)
    remove(pipe)
    latents(pipe)
    assert len(caplog.messages) == 1
    assert not hasattr(pipe.scheduler, "_reset_stateful_cache")


def test_pipelines_that_share_a_part_are_both_told_of_the_end_of_their_calls(pipe):
    """The part is watched for the first of them, another one for the second; neither takes it off the other."""
    shared = type(pipe)(**{**pipe.components, "transformer": transformer(3), "transformer_2": transformer(4)})
    shared.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)

    def watched():
        parts = {name: vars(part).get("_reset_stateful_cache") for name, part in pipe.components.items() if part}
        return {name: own for name, own in parts.items() if own is not None}

    apply(pipe, graphs(pipe))
    before = watched()
    assert len(before) == 2  # the scheduler and a spare
    apply(shared, graphs(shared))
    assert before.items() <= watched().items()
    (second,) = watched().keys() - before.keys()
    remove(shared)
    assert watched() == before
    apply(shared, graphs(shared))
    remove(pipe)
    assert watched().keys() == {second}
    spare = getattr(pipe, second)
    copied = pickle.dumps(spare)
    assert b"l2c" not in copied
    assert not pickle.loads(copied)._reset_stateful_cache()
    remove(shared)
    assert not watched()


def test_denoisers_and_scheduler_put_in_at_once_are_said_to_run_uncached(pipe, caplog):
    apply(pipe, graphs(pipe))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    pipe.transformer, pipe.transformer_2 = transformer(1), transformer(2)
    latents(pipe)
    assert ["transformer was replaced" in caplog.messages[0], "transformer_2 was" in caplog.messages[1]] == [True] * 2
    remove(pipe)
    latents(pipe)
    assert len(caplog.messages) == 2
    assert not any("_reset_stateful_cache" in vars(part) for part in pipe.components.values() if part is not None)


def test_a_denoiser_put_in_after_another_scheduler_is_said_to_run_uncached(pipe, caplog):
    apply(pipe, graphs(pipe))
    for kind in (type(pipe.scheduler), UniPCMultistepScheduler):  # of a class of ours, and of the plain one
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        latents(pipe)
    assert not caplog.messages
    pipe.transformer_2 = transformer(2)
    latents(pipe)
    (message,) = caplog.messages
    assert "WanPipeline.transformer_2 was replaced after the cache graph was applied" in message
