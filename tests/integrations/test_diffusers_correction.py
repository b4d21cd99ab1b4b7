"""Fitted slopes and corrections on diffusers models: hooks, sampler and training, against swaps by hand."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.hooks import HookRegistry
from hydra import compose, initialize_config_dir

import l2c
from l2c.calibration.distillation import Distillation, distil
from l2c.commands.train_scale_shift import train_by
from l2c.graph.resampling import resampled
from l2c.integrations.diffusers import ROOT, apply, remove
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.io.bundled import project_folder
from l2c.policies.context import PolicyContext
from l2c.sampling.correction import Correction, reused_entries, save_correction

CASES = [("dit", None), ("dit", ("block",)), ("pixart", None), ("sd3", None)]
CASES += [("unet", None), ("unet", ("block", "resnet"))]
SCHEDULERS = (DDIMScheduler, DPMSolverMultistepScheduler)
PROMPTS = ["a cat", "a red dog"]
STEPS = 5


def parts(output):
    return output if isinstance(output, tuple) else (output,)


def widths_of(model, layers, run):
    """Return each layer's number of channels, as a forward shows it."""
    found = {}

    def hook_of(name):
        def note(module, args, output):
            x = parts(output)[-1]
            found[name] = x.shape[1] if x.ndim == 4 else x.shape[-1]

        return note

    handles = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in layers]
    run()
    for handle in handles:
        handle.remove()
    return [found[name] for name in layers]


def with_fitted(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = [len(row) - sum(row) for row in graph.rows]
    fitted = [torch.rand(count, generator=generator).tolist() for count in counts]
    return graph.replace(reuse=("fitted",) * len(counts), slopes=fitted)


def with_correction(graph, widths, folder):
    """Return the graph with random scales and shifts, and both by entry."""
    generator = torch.Generator().manual_seed(1)
    entries = reused_entries(graph)
    scale, shift = (
        [base + 0.2 * torch.randn(widths[layer], generator=generator) for _, layer in entries] for base in (1.0, 0.0)
    )
    corrected = save_correction(folder / "c.safetensors", graph, scale, shift)
    return corrected, dict(zip(entries, zip(scale, shift, strict=True), strict=True))


def plan_of(graph, corrections):
    """Return per evaluation and layer None (compute), or slope, scale and shift."""
    slopes = [iter(row) for row in graph.slopes]
    return [
        [
            None if fresh else (next(slopes[e]), *corrections.get((e, i), (torch.ones(1), torch.zeros(1))))
            for i, fresh in enumerate(row)
        ]
        for e, row in enumerate(graph.rows)
    ]


@contextmanager
def swapped(model, layers, plan):
    """Let every module compute, then swap what it adds by hand, evaluation after evaluation."""
    e, stored = [-1], {name: [] for name in layers}

    def hook_of(index, name):
        def swap(module, args, kwargs, output):
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0] if args else None
            if "resnets" in name:
                x = x if module.conv_shortcut is None else module.conv_shortcut(x)
            adds = "resnets" in name or name.rpartition(".")[2].isdigit()
            added = [stream - x if adds else stream for stream in parts(output)]
            step = plan[e[0] % len(plan)][index]
            if step is None:
                stored[name].append(added)
                return output
            slope, scale, shift = step
            result = []
            for i, new in enumerate(stored[name][-1]):
                old = stored[name][-2][i] if len(stored[name]) > 1 else new
                shape = (1, -1, 1, 1) if new.ndim == 4 else (1, 1, -1)
                value = (new + slope * (new - old)) * scale.view(shape) + shift.view(shape)
                result.append(x + value if adds else value)
            return tuple(result) if isinstance(output, tuple) else result[0]

        return swap

    def next_evaluation(module, args):
        e[0] += 1
        if e[0] % len(plan) == 0:
            for outputs in stored.values():
                outputs.clear()

    handles = [
        model.get_submodule(name).register_forward_hook(hook_of(i, name), with_kwargs=True)
        for i, name in enumerate(layers)
    ]
    handles.append(model.register_forward_pre_hook(next_evaluation))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def latents_of(pipe, noise, steps=STEPS):
    """Return the latents that a Stable Diffusion pipeline draws."""
    return pipe(
        prompt=PROMPTS, num_inference_steps=steps, guidance_scale=3.0, latents=noise.clone(), output_type="latent"
    ).images


@pytest.fixture
def noise():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SCHEDULERS, ids=lambda scheduler: scheduler.__name__)
def diffusion(request, make_pipeline, random_rows):
    """A tiny Stable Diffusion pipeline, a sampler of it, and a graph with fitted slopes."""
    pipe = make_pipeline("stable_diffusion")
    pipe.scheduler = request.param.from_config(pipe.scheduler.config)
    backbone = pipeline_backbone(pipe, PROMPTS, num_evaluations=STEPS, of=("block", "resnet"))
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=3.0)
    rows = random_rows(STEPS, backbone.num_layers, seed=1)
    return pipe, sampler, PolicyContext.of(sampler).blank.replace(rows=rows, routed=None)


@pytest.mark.parametrize(("name", "of"), CASES)
@torch.no_grad()
def test_hooks_equal_the_hand_written_loop(name, of, make_family, family_graph, tmp_path):
    family = make_family(name)
    plain = family.trajectory()
    graph = with_fitted(family_graph(family, of=of))
    graph, corrections = with_correction(graph, widths_of(family.model, graph.layers, family.trajectory), tmp_path)
    with swapped(family.model, graph.layers, plan_of(graph, corrections)):
        expected = family.trajectory()
    apply(family.model, graph)
    for _ in range(2):
        for ours, theirs in zip(family.trajectory(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    remove(family.model)
    for after, before in zip(family.trajectory(), plain, strict=True):
        assert torch.equal(after, before)
    assert not torch.allclose(expected[-1], plain[-1], atol=1e-2)


@pytest.mark.parametrize("case", ["alike", "slopes", "correction"])
@torch.no_grad()
def test_neighbours_share_a_sum_only_where_it_is_exact(case, make_family, family_graph, tmp_path):
    family = make_family("dit")
    rows = [[bool(bit)] * 3 for bit in (1, 1, 0, 1, 0, 0)]
    graph = family_graph(family, of=("block",), rows=rows)
    fitted = [() if row[0] else (0.5, 0.5 if case != "slopes" else 0.2, 0.5) for row in rows]
    graph, corrections = graph.replace(reuse=("fitted",) * 6, slopes=fitted), {}
    if case == "correction":
        graph, corrections = with_correction(graph, [32] * 3, tmp_path)
    with swapped(family.model, graph.layers, plan_of(graph, corrections)):
        expected = family.trajectory()
    apply(family.model, graph)
    family(family.x, family.timesteps[0])
    hook = HookRegistry.check_if_exists_or_initialize(family.model).get_hook(ROOT)
    assert hook.cached_bytes == (1 if case == "alike" else 3) * 2 * 16 * 32 * 4
    for ours, theirs in zip(family.trajectory(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hooks_and_sampler_equal_the_hand_written_loop(diffusion, noise, tmp_path):
    pipe, sampler, graph = diffusion
    plain = latents_of(pipe, noise)
    widths = widths_of(pipe.unet, graph.layers, lambda: latents_of(pipe, noise))
    assert len(set(widths)) > 1
    graph, corrections = with_correction(with_fitted(graph), widths, tmp_path)
    with swapped(pipe.unet, graph.layers, plan_of(graph, corrections)):
        expected = latents_of(pipe, noise)
    ours = l2c.Sampler(sampler.backbone, graph=graph, cfg_scale=3.0).sample([0, 1], noise=noise)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    graph.save(tmp_path / "there" / "graph.json")
    apply(pipe, l2c.CacheGraph.load(tmp_path / "there" / "graph.json"))
    torch.testing.assert_close(latents_of(pipe, noise), expected, rtol=1e-3, atol=1e-3)
    remove(pipe)
    assert torch.equal(latents_of(pipe, noise), plain)


@torch.no_grad()
def test_layers_are_in_the_order_in_which_they_run(make_family):
    model = make_family("unet").model
    names = find_layers(model, of=("block", "resnet"))
    ran = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    family = make_family("unet")
    model(family.x, 1.0, **family.conditions)
    assert tuple(ran) == names


@torch.no_grad()
def test_streams_under_the_sampler(make_family, family_graph, tmp_path):
    family = make_family("sd3")
    graph = with_fitted(family_graph(family))
    graph, corrections = with_correction(graph, [32] * graph.num_layers, tmp_path)
    from l2c.backbones.backbone import Conventions
    from l2c.backbones.layer_form import first
    from l2c.backbones.wrap import WrappedModule
    from l2c.diffusion import Guidance
    from l2c.integrations.diffusers.layers import make_layer
    from l2c.sampling.denoiser import Denoiser

    class Conditioned(WrappedModule):
        def call(self, x, t, y):
            return first(self.module(x, timestep=t, **family.conditions))

    conventions = Conventions("SD3Transformer2DModel", "linear", 0, "cfg", None)
    backbone = Conditioned(
        family.model,
        [make_layer(family.model, name) for name in graph.layers],
        timestep="timestep",
        labels=None,
        conventions=conventions,
        input_shape=(4, 8, 8),
    )
    with swapped(family.model, graph.layers, plan_of(graph, corrections)):
        expected = family.trajectory()
    denoiser, x = Denoiser(backbone, None, Guidance("cfg"), graph), family.x
    for t, theirs in zip(family.timesteps, expected, strict=True):
        ours = denoiser(x, t)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        x = x - 0.15 * ours


@torch.no_grad()
def test_resampled_rows_bring_their_slopes_and_corrections(diffusion, noise, tmp_path):
    pipe, _, graph = diffusion
    widths = widths_of(pipe.unet, graph.layers, lambda: latents_of(pipe, noise))
    graph, corrections = with_correction(with_fitted(graph), widths, tmp_path)
    pipe.scheduler.set_timesteps(8)
    times = [float(t) for t in pipe.scheduler.timesteps]
    nearest = [min(range(STEPS), key=lambda i, t=t: abs(graph.timesteps[i] - t)) for t in times]
    moved = {
        (e, layer): entry
        for e, row in enumerate(nearest)
        for (old, layer), entry in corrections.items()
        if old == row
    }
    wanted = plan_of(resampled(graph, times), moved)
    assert [[entry is None for entry in row] for row in wanted[1:]] == [list(graph.rows[old]) for old in nearest[1:]]
    with swapped(pipe.unet, graph.layers, wanted):
        expected = latents_of(pipe, noise, steps=8)
    apply(pipe, graph, resample=True)
    torch.testing.assert_close(latents_of(pipe, noise, steps=8), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("diffusion", "loss"), [*zip(SCHEDULERS, ("output", "image"), strict=True)], indirect=["diffusion"]
)
def test_training_lowers_the_loss_and_exports_what_it_walked(diffusion, noise, loss, tmp_path):
    pipe, sampler, graph = diffusion
    module = Distillation(sampler, graph, loss=loss, scale_shift_rate=0.02)
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        before, _ = module.loss(noise, labels)
    distil(module, [(noise, labels)] * 5, 10)
    with torch.no_grad():
        after, _ = module.loss(noise, labels)
    assert float(after) < 0.95 * float(before)
    assert all(parameter.grad is None for parameter in sampler.backbone.parameters())
    with torch.no_grad():
        walked, _ = module.walk(noise, labels)
    trained, scale, shift = module.corrected()
    trained = save_correction(tmp_path / "c.safetensors", trained, scale, shift)
    apply(pipe, trained)
    torch.testing.assert_close(latents_of(pipe, noise), walked, rtol=1e-3, atol=1e-3)


def settings(graph, pipe, folder, *more):
    overrides = [f"graph={graph}", "backend=diffusers", f"pipeline={pipe}", "max_steps=2", "batch_size=2", *more]
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose("train_scale_shift", [*overrides, "accelerator=cpu"])


def test_the_command_trains_on_a_saved_pipeline(make_pipeline, tmp_path):
    pipe = make_pipeline("dit")
    pipe.save_pretrained(tmp_path / "pipe")
    backbone = pipeline_backbone(pipe, [3, 7], num_evaluations=3)
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=3, cfg_scale=3.0)
    rows = [[True] * 6, [False] * 6, [True, False] * 3]
    plain = PolicyContext.of(sampler).blank.replace(rows=rows, routed=None)
    path = tmp_path / "g.json"
    plain.save(path)
    cfg = settings(path, tmp_path / "pipe", tmp_path, "loss=output")
    graph = l2c.CacheGraph.load(train_by(cfg, tmp_path))
    assert (graph.rows, graph.model, graph.solver) == (plain.rows, "DiTTransformer2DModel", "DDIMScheduler")
    assert graph.provenance["trained"]["loss"] == "output"
    assert Correction.of(graph).scale.shape == (plain.num_reused, 32)
    pipe = type(pipe).from_pretrained(tmp_path / "pipe")
    apply(pipe, graph)
    remove(pipe)
    for wrong, message in (
        (["solver.num_evaluations=4"], "made for num_evaluations 3, got 4"),
        (["checkpoint=x.safetensors"], "a pipeline brings its own weights"),
        (["model.layers=[block]"], r"the graph's 6 layers .* are not the 3 .* model.layers=\[layer\]"),
    ):
        with pytest.raises(ValueError, match=message):
            train_by(settings(path, tmp_path / "pipe", tmp_path, *wrong), tmp_path / "other")
    cfg.model = None
    with pytest.raises(ValueError, match="of a diffusers pipeline; add backend=diffusers pipeline=PATH"):
        train_by(cfg, tmp_path / "other")
    plain.replace(model="UNet2DConditionModel", layers=[f"down.{i}" for i in range(6)]).save(path)
    with pytest.raises(ValueError, match="made for UNet2DConditionModel with 6 layers"):
        train_by(settings(path, tmp_path / "pipe", tmp_path), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_corrections_that_do_not_fit_are_refused(make_family, family_graph, tmp_path):
    family = make_family("dit")
    graph = family_graph(family)
    graph, _ = with_correction(graph, [16] * graph.num_layers, tmp_path)
    apply(family.model, graph)
    with pytest.raises(ValueError, match=r"holds 16 channels for layer \d at evaluation \d, but the layer has 32"):
        family.trajectory()
    remove(family.model)
    (tmp_path / "c.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="is missing; copy it beside the graph"):
        apply(family.model, graph)
    family.trajectory()
