"""The sampler against its uncached self and against a hand-written cached loop; what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import l2c
from l2c.backbones.backbone import PublishedSampling, fingerprint
from l2c.diffusion import Guidance
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import seeded_noise

LABELS = torch.tensor([0, 3, 4])
SCALES = {"dit": 2.0, "uvit": 0.7}


@pytest.fixture
def scale(backbone):
    """An active guidance scale in the backbone's convention."""
    return SCALES[backbone.conventions.guidance]


@pytest.fixture
def noise(backbone):
    return torch.randn((3, *backbone.input_shape), generator=torch.Generator().manual_seed(0))


def solver_of(backbone):
    return "ddim" if backbone.conventions.guidance == "dit" else "dpm_solver_2s"


# --- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm_solver_2s", "dpm_solver_2m"])
def test_all_compute_graph_gives_the_uncached_images(backbone, noise, make_graph, scale, solver, guided):
    cfg_scale = scale if guided else None
    n = backbone.num_layers
    graph = make_graph(backbone, solver, rows=[(True,) * n] * 6)
    assert graph.num_reused == 0
    cached = l2c.Sampler(backbone, graph=graph, cfg_scale=cfg_scale)
    plain = l2c.Sampler(backbone, solver=solver, num_evaluations=6, cfg_scale=cfg_scale)
    images = [s.sample(LABELS, noise=noise, seed=0) for s in (cached, plain)]
    assert torch.equal(*images)
    assert images[0].shape == noise.shape
    assert images[0].isfinite().all()


def cached_by_hooks(backbone, layers, graph, labels, noise, scale):
    """Sample without the seam: hooks store each layer's output and put it in the next one's place."""
    row, store = None, {}

    def hook(index):
        def swap(module, args, output):
            if row[index]:
                store[index] = output
            return store[index]

        return swap

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    null = torch.full_like(labels, 5)
    solver = l2c.Sampler(backbone, graph=graph).solver
    trajectory = solver.trajectory(noise)
    request = next(trajectory)
    try:
        while True:
            row = graph.rows[request.index]
            x, t = torch.cat([request.x] * 2), torch.full((2 * len(noise),), request.t)
            cond, uncond = backbone(x, t, torch.cat([labels, null])).chunk(2)
            if backbone.conventions.guidance == "uvit":
                output = (1 + scale) * cond - scale * uncond
            else:
                guided = (1 - scale) * uncond[:, :3] + scale * cond[:, :3]
                output = torch.cat([guided, cond[:, 3:]], dim=1)
            request = trajectory.send(output)
    except StopIteration as stop:
        return stop.value
    finally:
        for handle in handles:
            handle.remove()


def test_cached_images_equal_a_loop_that_caches_by_hooks(backbone, noise, make_graph, layers_of, scale):
    graph = make_graph(backbone, num_evaluations=8)
    expected = cached_by_hooks(backbone, layers_of(backbone), graph, LABELS, noise, scale)
    images = l2c.Sampler(backbone, graph=graph, cfg_scale=scale).sample(LABELS, noise=noise)
    spread = expected.std()
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4 * spread.item())
    plain = l2c.Sampler(backbone, solver=graph.solver, num_evaluations=8, cfg_scale=scale)
    assert (plain.sample(LABELS, noise=noise) - expected).abs().max() > 0.01 * spread  # caching does show


def test_ddim_images_equal_a_loop_written_by_hand(make_dit):
    backbone = make_dit()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = l2c.Sampler(backbone, solver="ddim", num_evaluations=4, cfg_scale=3.0).sample(LABELS, noise=x)
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    steps = [999, 666, 333, 0]
    for now, after in zip(steps, [*steps[1:], None], strict=True):
        t = torch.full((3,), float(now))
        cond, uncond = backbone(x, t, LABELS), backbone(x, t, torch.full((3,), 5))
        eps = torch.cat([uncond[:, :3] + 3 * (cond[:, :3] - uncond[:, :3]), cond[:, 3:4]], dim=1)
        a = signal[now].item()
        b = 1.0 if after is None else signal[after].item()
        x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    torch.testing.assert_close(images, x, rtol=1e-4, atol=1e-4)


def test_neutral_guidance_runs_one_pass(backbone, noise):
    sizes = []
    embedder = backbone.x_embedder if backbone.conventions.guidance == "dit" else backbone.patch_embed
    handle = embedder.register_forward_hook(lambda _, args, output: sizes.append(len(args[0])))
    neutral = {"dit": 1.0, "uvit": 0.0}[backbone.conventions.guidance]
    for cfg_scale in (None, neutral, SCALES[backbone.conventions.guidance]):
        l2c.Sampler(backbone, solver="ddim", num_evaluations=2, cfg_scale=cfg_scale).sample(LABELS, noise=noise)
    handle.remove()
    assert sizes == [3, 3, 3, 3, 6, 6]


def test_unconditional_backbone_samples_without_labels(make_uvit, make_graph):
    backbone = make_uvit(num_classes=-1)
    noise = torch.randn(2, 4, 8, 8)
    graph = make_graph(backbone)
    assert l2c.Sampler(backbone, graph=graph).sample(noise=noise).shape == (2, 4, 8, 8)
    with pytest.raises(ValueError, match="UViT has no labels; call sample"):
        l2c.Sampler(backbone, graph=graph).sample([0, 1], noise=noise)
    with pytest.raises(ValueError, match="needs an unconditional label"):
        l2c.Sampler(backbone, graph=graph, cfg_scale=0.4)
    with pytest.raises(ValueError, match="number of images comes from noise"):
        l2c.Sampler(backbone, graph=graph).sample(seed=0)


def test_frozen_weights_stay_without_gradients(backbone, noise, make_graph):
    backbone.requires_grad_(True)
    images = l2c.Sampler(backbone, graph=make_graph(backbone)).sample(LABELS, noise=noise)
    assert not images.requires_grad
    assert all(p.grad is None for p in backbone.parameters())


# --- repeated use -------------------------------------------------------------------------------------------


def test_second_call_gives_the_same_images(backbone, noise, make_graph, scale):
    sampler = l2c.Sampler(backbone, graph=make_graph(backbone), cfg_scale=scale)
    first = sampler.sample(LABELS, noise=noise)
    assert not torch.equal(sampler.sample(LABELS, noise=-noise), first)
    assert torch.equal(sampler.sample(LABELS, noise=noise), first)


def test_an_aborted_call_leaves_nothing_behind(backbone, noise, make_graph):
    sampler = l2c.Sampler(backbone, graph=make_graph(backbone))
    expected = sampler.sample(LABELS, noise=noise)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    embedding = backbone.x_embedder if hasattr(backbone, "x_embedder") else backbone.patch_embed
    handle = embedding.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(LABELS, noise=noise)
    handle.remove()
    assert torch.equal(sampler.sample(LABELS, noise=noise), expected)


def test_image_i_gets_the_same_noise_whatever_the_batch():
    whole = seeded_noise((4, 8, 8), 7, 5)
    parts = [seeded_noise((4, 8, 8), 7, 2), seeded_noise((4, 8, 8), 7, 3, first=2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(seeded_noise((4, 8, 8), 8, 5), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 5
    assert seeded_noise((4, 8, 8), 7, 0).shape == (0, 4, 8, 8)


def test_seed_draws_that_noise(backbone):
    sampler = l2c.Sampler(backbone, solver=solver_of(backbone), num_evaluations=4)
    drawn = sampler.sample(LABELS, seed=3)
    assert torch.equal(drawn, sampler.sample(LABELS, noise=seeded_noise(backbone.input_shape, 3, 3)))
    torch.testing.assert_close(sampler.sample(LABELS[:2], seed=3), drawn[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sampler.sample(LABELS, seed=4), drawn)


def test_seed_decides_stochastic_solvers_too(make_dit):
    sampler = l2c.Sampler(make_dit(), solver="ddim", num_evaluations=4, eta=1.0)
    assert torch.equal(sampler.sample(LABELS, seed=3), sampler.sample(LABELS, seed=3))
    noise = seeded_noise((4, 8, 8), 3, 3)
    assert not torch.allclose(
        sampler.sample(LABELS, noise=noise, seed=1), sampler.sample(LABELS, noise=noise, seed=2)
    )


@pytest.mark.parametrize("seed", [0, 5])
def test_step_noise_is_not_the_starting_noise(make_dit, monkeypatch, seed):
    """The same numbers twice would correlate the first step with the start."""
    drawn = []
    original = l2c.diffusion.ddim.draw_noise
    monkeypatch.setattr("l2c.diffusion.ddim.draw_noise", lambda *a: drawn.append(original(*a)) or drawn[-1])
    l2c.Sampler(make_dit(), solver="ddpm", num_evaluations=3).sample(LABELS, seed=seed)
    start = seeded_noise((4, 8, 8), seed, 3)
    assert len(drawn) == 2
    assert not any(torch.equal(step[i], start[i]) for step in drawn for i in range(3))


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_holds_what_keep_says_and_no_more(backbone, noise, make_graph, scale, dtype):
    backbone = backbone.to(dtype)
    graph = make_graph(backbone, num_evaluations=8)
    denoiser = Denoiser(backbone, LABELS, Guidance(backbone.conventions.guidance, scale), graph)
    tokens = 16 if backbone.conventions.guidance == "dit" else 18
    size = 6 * tokens * 32 * dtype.itemsize  # both guidance branches of three images
    held = []
    solver = l2c.Sampler(backbone, graph=graph).solver
    with torch.no_grad():
        solver.sample(denoiser, noise, on_evaluation=lambda e: held.append(denoiser.cached_bytes))
    assert held == [sum(keep) * size for keep in graph.keep]
    assert max(held) == graph.peak_kept * size > 0
    assert held[-1] == 0


def test_nothing_is_cached_without_a_graph(backbone, noise):
    denoiser = Denoiser(backbone, LABELS, Guidance(backbone.conventions.guidance))
    denoiser(noise, 500.0)
    assert denoiser.cached_bytes == 0


def test_bf16_backbone_samples_in_bf16_and_returns_fp32(backbone, noise, make_graph):
    half = copy.deepcopy(backbone).bfloat16()
    graph = make_graph(half)
    dtypes = set()
    half.get_submodule(half.layer_names[0]).register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
    images = l2c.Sampler(half, graph=graph).sample(LABELS, noise=noise)
    assert dtypes == {torch.bfloat16}
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    exact = l2c.Sampler(backbone, graph=graph).sample(LABELS, noise=noise)
    assert (images - exact).std() < 0.1 * exact.std()


@pytest.mark.parametrize("precision", [None, "tf32"])
def test_autocast_around_a_sampler_changes_nothing(backbone, noise, make_graph, precision):
    sampler = l2c.Sampler(backbone, graph=make_graph(backbone), precision=precision)
    expected = sampler.sample(LABELS, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampler.sample(LABELS, noise=noise), expected)
        assert torch.is_autocast_enabled("cpu")  # of what follows
        with torch.no_grad():  # a loop that it does reach
            reached = sampler.solver.sample(sampler.denoiser(LABELS), noise)
    assert not torch.equal(reached, expected)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch's, of its own quantisation
def test_packed_weights_are_refused(make_dit):
    packed = torch.ao.quantization.quantize_dynamic(make_dit(), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"t_embedder has no parameters, as torch\.ao.*; quantise with torchao"):
        l2c.Sampler(packed, solver="ddim", num_evaluations=2)


def test_graph_of_another_backbone_is_refused(make_dit, make_uvit, make_graph):
    dit, uvit = make_dit(), make_uvit()
    with pytest.raises(ValueError, match=r"made for DiT with 4 layers .* but UViT has 6 .*take a graph"):
        l2c.Sampler(uvit, graph=make_graph(dit))
    with pytest.raises(ValueError, match=r"with 4 layers .* but DiT has 6"):
        l2c.Sampler(make_dit(depth=3), graph=make_graph(dit))
    other = make_dit()
    other.conventions = replace(other.conventions, name="dit_other")
    with pytest.raises(ValueError, match="made for dit_xl2, but the backbone is dit_other; take"):
        l2c.Sampler(other, graph=make_graph(dit, model="dit_xl2"))
    with pytest.raises(ValueError, match="under guidance 'uvit', but DiT uses 'dit'"):
        l2c.Sampler(dit, graph=make_graph(dit, guidance="uvit"))


def test_graph_of_other_weights_is_refused_unless_any_will_do(make_dit, make_graph):
    net, other = make_dit(seed=0), make_dit(seed=1)
    graph = make_graph(net, fingerprint=fingerprint(net))
    assert l2c.Sampler(net, graph=graph).graph is graph
    with pytest.raises(ValueError, match=r"made for other weights of DiT \(sha256:.*pass any_weights=True"):
        l2c.Sampler(other, graph=graph)
    assert l2c.Sampler(other, graph=graph, any_weights=True).graph is graph
    other.load_state_dict(net.state_dict())
    assert l2c.Sampler(other, graph=graph).graph is graph


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"solver": "ddpm"}, "made for solver ddim, got ddpm; leave solver out"),
        ({"num_evaluations": 8}, "made for num_evaluations 6, got 8"),
        ({"cfg_scale": 4.0}, "made for cfg_scale 1.5, got 4.0"),
        ({"eta": 1.0}, "made for eta 0.0, got 1.0"),
    ],
)
def test_what_contradicts_the_graph_is_refused(make_dit, make_graph, given, says):
    net = make_dit()
    graph = make_graph(net, cfg_scale=1.5, solver_options={"eta": 0.0})
    with pytest.raises(ValueError, match=says):
        l2c.Sampler(net, graph=graph, **given)


def test_the_graph_brings_solver_timesteps_and_guidance(make_dit, make_graph):
    net = make_dit()
    graph = make_graph(net, cfg_scale=1.5, solver_options={"eta": 0.5})
    sampler = l2c.Sampler(net, graph=graph)
    assert (sampler.solver.name, sampler.solver.eta, sampler.guidance.scale) == ("ddim", 0.5, 1.5)
    assert sampler.timesteps == graph.timesteps
    same = l2c.Sampler(net, graph=graph, solver="ddim", num_evaluations=6, cfg_scale=1.5, eta=0.5)
    assert same.timesteps == graph.timesteps
    free = make_graph(net, cfg_scale=None)
    assert l2c.Sampler(net, graph=free, cfg_scale=4.0).guidance.scale == 4.0
    assert not l2c.Sampler(net, graph=free).guidance.active


def test_graph_of_other_timesteps_is_refused(make_dit, make_graph):
    net = make_dit()
    graph = make_graph(net)
    moved = [t + 1e-4 for t in graph.timesteps]
    assert l2c.Sampler(net, graph=graph.replace(timesteps=moved)).timesteps == graph.timesteps
    moved[2] -= 1
    with pytest.raises(ValueError, match=r"evaluation 2 is at t = 598.*takes it at t = 599"):
        l2c.Sampler(net, graph=graph.replace(timesteps=moved))


def test_a_sampler_needs_a_graph_or_a_solver(make_dit):
    with pytest.raises(ValueError, match="needs a graph, or solver and num_evaluations"):
        l2c.Sampler(make_dit(), solver="ddim")
    with pytest.raises(ValueError, match="unknown solver 'dimm'"):
        l2c.Sampler(make_dit(), solver="dimm", num_evaluations=4)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1, 5], r"label 5 is out of range: \w+ has the labels 0\.\.4"),  # the null label is the sampler's
        ([0, -1, 2], "label -1 is out of range"),
        ([0.0, 1.0, 2.0], r"labels must be integers of shape \(N,\), got torch.float32"),
        (torch.tensor([True, False, True]), "labels must be integers"),
        (torch.zeros(3, 1, dtype=torch.long), r"got torch.int64 of shape \(3, 1\)"),
        ([0, 1], r"noise has shape \(3, 4, 8, 8\), but .* takes \(2, 4, 8, 8\)"),
        (None, r"needs labels: give \(N,\) integers in 0\.\.4"),
    ],
)
def test_wrong_labels_are_refused(backbone, noise, labels, says):
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=2)
    with pytest.raises(ValueError, match=says):
        sampler.sample(labels, noise=noise)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_any_integers_are_labels(backbone, noise, dtype):
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=2, cfg_scale=SCALES[backbone.conventions.guidance])
    expected = sampler.sample([0, 3, 4], noise=noise)
    assert torch.equal(sampler.sample(LABELS.to(dtype), noise=noise), expected)


@pytest.mark.parametrize("shape", [(3, 4, 8, 7), (3, 3, 8, 8), (4, 8, 8), (2, 4, 8, 8)])
def test_wrong_noise_is_refused(backbone, shape):
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=2)
    with pytest.raises(ValueError, match=r"noise has shape .* takes \(3, 4, 8, 8\)"):
        sampler.sample(LABELS, noise=torch.zeros(shape))


def test_noise_or_a_seed_is_needed(backbone):
    with pytest.raises(ValueError, match=r"give noise=.*or seed=0"):
        l2c.Sampler(backbone, solver="ddim", num_evaluations=2).sample(LABELS)


# --- bad input, one sentence ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cfg_scale": "4"}, r"cfg_scale must be a finite number in \[-1000, 1000\], got '4' \(str\)"),
        ({"cfg_scale": float("nan")}, "cfg_scale must be a finite number .* got nan"),
        ({"cfg_scale": float("inf")}, "cfg_scale must be a finite number .* got inf"),
        ({"cfg_scale": 1e38}, "cfg_scale must be a finite number .* got 1e"),
        ({"cfg_scale": True}, r"got True \(bool\)"),
        ({"num_evaluations": 2.5}, r"num_evaluations must be a whole number in \[1, 4096\], got 2.5"),
        ({"num_evaluations": 0}, r"num_evaluations must be a whole number in \[1, 4096\], got 0"),
        ({"num_evaluations": "4"}, r"num_evaluations must be a whole number .* got '4' \(str\)"),
        ({"eta": 2.0}, r"eta must be a finite number in \[0, 1\], got 2.0"),
        ({"eta": "much"}, "eta must be a finite number"),
        ({"graph": 3}, "graph must be a CacheGraph, a path or a bundled name, got int"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(make_dit, given, says):
    with pytest.raises(ValueError, match=says) as caught:
        l2c.Sampler(make_dit(), **{"solver": "ddim", "num_evaluations": 4, **given})
    assert "\n" not in str(caught.value)


def test_whole_floats_and_paths_are_taken(make_dit, make_graph, tmp_path):
    net = make_dit()
    assert l2c.Sampler(net, solver="ddim", num_evaluations=2.0).solver.num_evaluations == 2
    graph = make_graph(net)
    graph.save(tmp_path / "g.json")
    assert l2c.Sampler(net, graph=tmp_path / "g.json").graph == graph
    assert l2c.Sampler(net, graph=str(tmp_path / "g.json")).graph == graph
    with pytest.raises(FileNotFoundError, match="no cache graph at nowhere"):
        l2c.Sampler(net, graph="nowhere")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"seed": 0, "first_image": -1}, "first_image must be a whole number of at least 0, got -1"),
        ({"noise": [1.0]}, r"noise must be a tensor of floats \(N, C, H, W\), got list"),
        ({"noise": torch.zeros(3, 4, 8, 8, dtype=torch.long)}, "got torch.int64"),
        ({"noise": torch.tensor(1.0)}, "noise must be a tensor of floats"),
        ({"noise": torch.zeros(3, 4, 8, 8).to_sparse()}, "noise must be a tensor of floats"),
        ({"noise": torch.full((3, 4, 8, 8), 1e300, dtype=torch.float64)}, "noise must be finite in 32 bits"),
        ({"labels": [], "seed": 0}, "labels are empty"),
        ({"labels": ["a", "b"], "seed": 0}, "labels must be integers of shape"),
        ({"labels": LABELS.to_sparse(), "seed": 0}, "labels must be integers of shape"),
        ({"labels": LABELS.to("meta"), "seed": 0}, "labels must be integers of shape"),
        ({"labels": torch.tensor([2**63], dtype=torch.uint64), "seed": 0}, "label -9.* is out of range"),
    ],
)
def test_inputs_of_the_wrong_kind_are_refused(make_dit, given, says):
    sampler = l2c.Sampler(make_dit(), solver="ddim", num_evaluations=2)
    with pytest.raises(ValueError, match=says):
        sampler.sample(**{"labels": LABELS, **given})


def one_head(net):
    net.blocks[0].attn.num_heads = 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda net: net.blocks.append(net.blocks[0]), "runs more blocks than the 2 that the graph has layers of"),
        (lambda net: net.blocks[0].register_forward_hook(lambda *run: run[-1] * 2), r"must return .*tuple of 4"),
        (lambda net: net.blocks[0].register_forward_hook(lambda *run: run[-1][0]), "must return .*got Tensor"),
        (one_head, "DiT failed while images were drawn: RuntimeError: shape .* is invalid"),
    ],
)
def test_a_network_changed_since_is_refused_in_a_sentence(make_dit, make_graph, change, says):
    net = make_dit(num_heads=2, depth=2)
    sampler = l2c.Sampler(net, graph=make_graph(net, num_evaluations=2), any_weights=True)
    change(net)
    with pytest.raises(RuntimeError if change is one_head else ValueError, match=says):
        sampler.sample(LABELS, seed=0)


def test_labels_of_every_width_are_taken(backbone):
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=2)
    images = sampler.sample(LABELS, seed=0)
    for dtype in (torch.int8, torch.uint8, torch.uint32, torch.uint64):
        assert torch.equal(sampler.sample(LABELS.to(dtype), seed=0), images)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, float("nan"), 10**30])
def test_compiling_is_for_a_whole_number_of_images(backbone, count):
    with pytest.raises(ValueError, match="num_images must be a whole number in"):
        l2c.Sampler(backbone, solver="ddim", num_evaluations=2).compile(count)


def test_numbers_that_are_none_go_neither_in_nor_out(backbone, noise):
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=2)
    broken = noise.clone()
    broken[1, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="noise must be finite in 32 bits, got NaN or infinity in image 1"):
        sampler.sample(LABELS, noise=broken)
    next(backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="image 0 of 3 came out as NaN or infinity; look for such numbers in the we"):
        sampler.sample(LABELS, noise=noise)


# --- which guidance counts ------------------------------------------------------------------------------------


def published(net, scale):
    net.conventions = replace(net.conventions, published=PublishedSampling("ddim", 20, scale))
    return net


def test_given_then_graph_then_published_then_off(make_dit, make_graph):
    net = published(make_dit(), 1.5)
    free, bound = make_graph(net), make_graph(net, cfg_scale=3.0)
    assert l2c.Sampler(net, graph=free, cfg_scale=2.0).guidance.scale == 2.0
    assert l2c.Sampler(net, graph=bound).guidance.scale == 3.0
    assert l2c.Sampler(net, graph=free).guidance.scale == 1.5
    assert l2c.Sampler(net, solver="ddim", num_evaluations=4).guidance.scale == 1.5
    assert not l2c.Sampler(make_dit(), graph=make_graph(make_dit())).guidance.active
    assert not l2c.Sampler(net, graph=free, cfg_scale=1.0).guidance.active


def test_presets_bring_their_published_scale():
    net = l2c.load_backbone("dit_digits", checkpoint="random")
    assert net.conventions.published == PublishedSampling("ddim", 20, 1.5)


def test_another_guidance_is_refused_unless_any_will_do(make_dit, make_graph):
    net = make_dit()
    graph = make_graph(net, cfg_scale=4.5)
    for scale in (1.5, 1.0):
        with pytest.raises(ValueError, match=rf"made for cfg_scale 4.5, got {scale}; .*any_guidance=True"):
            l2c.Sampler(net, graph=graph, cfg_scale=scale)
        assert l2c.Sampler(net, graph=graph, cfg_scale=scale, any_guidance=True).guidance.scale == scale


def test_extrapolation_along_noisy_trajectories_is_refused(make_dit, make_graph):
    net = make_dit()
    rows = [[True] * 4, [True] * 4, [False] * 4, [True] * 4]
    linear = make_graph(net, num_evaluations=4, rows=rows, reuse=("linear",) * 4)
    with pytest.raises(
        ValueError, match=r"extrapolates \(reuse is linear at evaluation 2\).*eta = 0, or a graph whose"
    ):
        l2c.Sampler(net, graph=linear, eta=0.5)
    assert l2c.Sampler(net, graph=linear).solver.eta == 0
    assert l2c.Sampler(net, graph=linear.replace(reuse=()), eta=0.5).solver.eta == 0.5
    made_for_it = linear.replace(solver_options={"eta": 0.5})
    assert l2c.Sampler(net, graph=made_for_it).solver.eta == 0.5
