"""Every policy on pipelines' denoisers; what is measured for them against changes made by hand."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import l2c
from l2c.calibration.changes import measure_changes
from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.integrations.diffusers import apply, remove
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import PipelineBackbone, pipeline_backbone
from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.conditions import PerPrompt, places_of
from l2c.integrations.diffusers.recorded.recording import Recording
from l2c.integrations.diffusers.scheduler_solver import SchedulerSolver
from l2c.io.seeds import ImageNoise
from l2c.policies.context import PolicyContext
from l2c.policies.registry import POLICIES, make_graph
from l2c.sampling.sampler import seeded_noise

STEPS = 4
PROBES = 3
OPTIONS = {"best": {"num_trajectories": 2, "pool": 2, "steps": 1, "batch_size": 2, "max_span": 2}}
FLOW = ("sd3", "flux")


def small_sizes(pipe):
    small = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    return small if "PixArt" in type(pipe).__name__ else {}


def calibrated(sampler):
    labels, noise = torch.tensor([0, 1]), seeded_noise(sampler.backbone.input_shape, 5, 2)
    tensors = measure_changes(sampler, labels, noise, max_age=3)
    tensors["responses"] = measure_responses(sampler, labels, noise, num_probes=1, max_age=3)
    return PolicyContext.of(sampler, Measurements(tensors, PolicyContext.of(sampler).blank.binding))


@pytest.fixture(scope="module")
def contexts(make_pipeline):
    """A pipeline and its context by name, measured once for all policies."""
    known = {}

    def of(name):
        if name not in known:
            pipe = make_pipeline(name)
            prompts = [3, 7] if name == "dit" else ["a cat", "a red dog"]
            backbone = pipeline_backbone(pipe, prompts, num_evaluations=STEPS, options=small_sizes(pipe))
            sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=3.0)
            known[name] = pipe, calibrated(sampler)
        return known[name]

    return of


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_every_policy_makes_a_graph_that_runs(name, policy, contexts):
    _, context = contexts(name)
    budget = 0.85 if policy == "pab" else 0.8  # attention alone saves no more of the small DiT
    graph = make_graph(policy, context, budget=budget, **OPTIONS.get(policy, {}))
    worth = context.cost.evaluations_worth(graph)
    assert worth == pytest.approx(budget * STEPS, abs=0.5)
    assert worth < STEPS
    backbone, noise = context.sampler.backbone, seeded_noise((4, 8, 8), 0, 2)
    graph = l2c.CacheGraph.from_json(graph.to_json())
    cached = l2c.Sampler(backbone, graph=graph).sample([0, 1], noise=noise)
    assert cached.isfinite().all()
    assert not torch.equal(cached, context.sampler.sample([0, 1], noise=noise))


@pytest.mark.parametrize("reuses", [["hold"], ["hold", "linear"]])
def test_gram_under_hooks_equals_our_sampler(reuses, contexts):
    pipe, context = contexts("dit")
    graph = make_graph("gram", context, budget=0.6, reuses=reuses)
    sampler = l2c.Sampler(context.sampler.backbone, graph=graph)
    noise = seeded_noise((4, 8, 8), 0, 2)
    ours = sampler.sample([0, 1], noise=noise)
    plain = context.sampler
    apply(pipe.transformer, graph)
    try:
        hooked = plain.sample([0, 1], noise=noise)
    finally:
        remove(pipe.transformer)
    torch.testing.assert_close(hooked, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.sample([0, 1], noise=noise), ours, atol=1e-3)


def family_sampler(make_family, name, of=None, num_evaluations=3, **options):
    """Return the sampler of a tiny model under two prompts, the second being the empty one."""
    family = make_family(name)
    scheduler = FlowMatchEulerDiscreteScheduler() if name in FLOW else DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(num_evaluations)
    times = [float(t) / (1000 if name == "flux" else 1) for t in scheduler.timesteps]
    conditions = [
        {key: value[i : i + 1] if torch.is_tensor(value) and len(value) == 2 else value for key, value in given}
        for given in [family.conditions.items()]
        for i in range(2)
    ]
    calls = [RecordedCall(family.x, times[0], given, "hidden_states", ("timestep",), False) for given in conditions]
    backbone = PipelineBackbone(
        family.model,
        Recording(calls, places_of(conditions[0], family.conditions), None, 1.0),
        SchedulerSolver(scheduler, times),
        of=of,
        **options,
    )
    return l2c.Sampler(backbone, solver="pipeline", num_evaluations=num_evaluations, cfg_scale=2.0), family


def moved_by_hand(sampler, family, noise, e, layer, size):
    """Return the image when an output moves by `size` towards the one before: hooks on modules, our own loop."""
    backbone, scheduler = sampler.backbone, sampler.solver._scheduler
    module, form = backbone.layers[layer].module, backbone.layers[layer].form
    kept = {}

    def swap(module, args, kwargs, output):
        branch = form.branch(module, args, kwargs, output)
        streams = branch if isinstance(branch, tuple) else (branch,)
        before = kept.get("streams")
        kept["streams"] = [None if stream is None else stream.clone() for stream in streams]
        if kept["e"] != e:
            return output
        pairs = zip(streams, before, strict=True)
        moved = tuple(None if now is None else now + size * (old - now) for now, old in pairs)
        return form.stand_in(module, args, kwargs, moved if isinstance(branch, tuple) else moved[0])

    handle = module.register_forward_hook(swap, with_kwargs=True)
    scheduler, x = copy.deepcopy(scheduler), noise
    try:
        for index, (t, seen) in enumerate(zip(scheduler.timesteps, sampler.timesteps, strict=True)):
            kept["e"] = index
            times = torch.full((2,), seen)
            output = family.model(
                hidden_states=torch.cat([x, x]), timestep=times, return_dict=False, **family.conditions
            )[0]
            cond, uncond = output.chunk(2)
            guided = uncond + 2.0 * (cond - uncond)
            if guided.shape[1] == 2 * x.shape[1] and x.ndim == 4:
                guided = guided[:, : x.shape[1]]
            x = scheduler.step(guided, t, x).prev_sample
    finally:
        handle.remove()
    return x


@pytest.mark.parametrize(("name", "of"), [("sd3", None), ("flux", ("block",)), ("pixart", ("block",))])
def test_responses_are_the_derivatives_of_the_image(name, of, make_family):
    """Streams, whole blocks and batched guidance: central differences in double precision."""
    sampler, family = family_sampler(make_family, name, of)
    sampler.backbone.double()
    family.conditions.update({k: v.double() for k, v in family.conditions.items() if torch.is_tensor(v)})
    sampler.backbone._table = doubled(sampler.backbone._table)
    noise = seeded_noise(sampler.backbone.input_shape, 3, 1).double()
    size = noise[0].numel()
    responses = measure_responses(sampler, torch.tensor([0]), noise, num_probes=PROBES, max_age=2)
    probes = torch.linalg.qr(ImageNoise("directions of responses", 0, [0])((1, size, PROBES))).Q[0]
    step = 1e-2  # schedulers of flow matching step in 32 bits
    for e, layer in ((1, 0), (2, len(sampler.backbone.layer_names) - 1)):
        with torch.no_grad():
            ahead, behind = (moved_by_hand(sampler, family, noise, e, layer, s) for s in (step, -step))
        change = ((ahead - behind) / (2 * step)).flatten().float()
        expected = probes.T @ change / PROBES**0.5
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(
            responses[e, layer, 0], expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max())
        )


def doubled(table):
    if isinstance(table, dict):
        return {key: doubled(value) for key, value in table.items()}
    if isinstance(table, PerPrompt):
        return PerPrompt(tuple(part.double() for part in table.parts), table.axis)
    return table.double() if torch.is_tensor(table) else table


def test_schedulers_that_add_noise_or_stop_gradients_are_refused(make_pipeline):
    pipe = make_pipeline("dit")
    for config, kind in (
        (EulerAncestralDiscreteScheduler, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ):
        pipe.scheduler = config.from_config(DDIMScheduler().config, **kind)
        backbone = pipeline_backbone(pipe, [3], num_evaluations=3)
        sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=3)
        with pytest.raises(ValueError, match="adds noise at its steps; take DDIMScheduler"):
            measure_responses(sampler, torch.tensor([0]), torch.zeros(1, 4, 8, 8))
    pipe.scheduler = Opaque.from_config(DDIMScheduler().config)
    sampler = l2c.Sampler(pipeline_backbone(pipe, [3], num_evaluations=3), solver="pipeline", num_evaluations=3)
    with pytest.raises(ValueError, match="but Opaque passes no gradient on; give the pipeline a scheduler that does"):
        measure_responses(sampler, torch.tensor([0]), torch.randn(1, 4, 8, 8))


class Opaque(DDIMScheduler):
    def step(self, *args, **kwargs):
        with torch.no_grad():
            return super().step(*args, **kwargs)


@pytest.mark.parametrize("of", [("block", "resnet"), ("layer", "resnet")])
@torch.no_grad()
def test_layers_of_a_unet_are_listed_as_they_run(of, make_family):
    """What the sampler keeps is freed after the last layer that reads it."""
    family, ran = make_family("unet"), []
    names = find_layers(family.model, of=of)

    def note(name):
        return lambda *_: ran.append(name)

    for name in names:
        family.model.get_submodule(name).register_forward_pre_hook(note(name))
    family(family.x, 500.0)
    assert tuple(ran) == names


def test_fewer_steps_are_the_schedulers_own(make_pipeline):
    """A pipeline read at 4 steps also samples at 3 and 2; the text encoder ran once for those."""
    pipe = make_pipeline("pixart")
    encoded = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    settings = {"options": small_sizes(pipe), "fewer_steps": True}
    backbone = pipeline_backbone(pipe, ["a cat", "a red dog"], num_evaluations=STEPS, **settings)
    handle.remove()
    assert sum(encoded) <= 5  # two prompts, one of them twice in a batch, and with the empty one under guidance
    assert "encode_prompt" not in vars(pipe)
    for steps in (3, 2):
        sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=steps)
        pipe.scheduler.set_timesteps(steps)
        assert sampler.timesteps == tuple(pipe.scheduler.timesteps.tolist())
    with pytest.raises(ValueError, match="read with DPMSolverMultistepScheduler and 4 steps, got pipeline and 5"):
        l2c.Sampler(backbone, solver="pipeline", num_evaluations=5)


def test_guidance_that_is_an_input_is_not_applied_again(make_family):
    backbone = family_sampler(make_family, "flux", guidance="embedded")[0].backbone
    noise = seeded_noise((16, 4), 0, 1)
    plain = l2c.Sampler(backbone, solver="pipeline", num_evaluations=3).sample([0], noise=noise)
    scaled = l2c.Sampler(backbone, solver="pipeline", num_evaluations=3, cfg_scale=3.5)
    assert torch.equal(scaled.sample([0], noise=noise), plain)
    blank = PolicyContext.of(scaled).blank
    assert (blank.guidance, blank.cfg_scale) == ("embedded", 3.5)
