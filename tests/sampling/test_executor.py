"""The executor's options: what is worked out ahead, where the cache lives, precision, compiling, capturing."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import l2c
from l2c.sampling.conditions import Conditions
from l2c.sampling.execution.captured import CapturedTrajectory, why_not
from l2c.sampling.execution.precision import matmul_setting, matmuls
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.speed.published_scheme import PublishedScheme

LABELS = torch.tensor([0, 3, 4])
MIXED = ("hold", "hold", "linear", "linear", "hold", "linear", "hold", "linear")
SCALES = {"dit": 2.0, "uvit": 0.7}


@pytest.fixture
def graph(backbone, make_graph, random_rows):
    """Hold and linear reuse, some blocks reused whole."""
    rows = [list(row) for row in random_rows(8, backbone.num_layers, seed=3)]
    for e in (2, 5, 7):
        rows[e][:4] = [False] * 4
    rows[4] = [True] * backbone.num_layers
    return make_graph(backbone, num_evaluations=8, rows=rows, reuse=MIXED)


@pytest.fixture
def scale(backbone):
    return SCALES[backbone.conventions.guidance]


def sample(sampler, seed=0):
    return sampler.sample(LABELS, seed=seed)


def assert_near(images, expected, tolerance):
    assert (images - expected).abs().max() <= tolerance * expected.std()


# --- the published scheme ------------------------------------------------------------------------------------


def test_the_published_scheme_gives_the_same_images(backbone, make_graph, scale):
    graph = make_graph(backbone, num_evaluations=8)
    sampler = Sampler(backbone, graph=graph, cfg_scale=scale)
    model = PublishedScheme(backbone, LABELS, sampler.guidance, graph)
    with torch.no_grad():
        expected = sampler.solver.sample(model, seeded_noise(backbone.input_shape, 0, 3))
    assert_near(sample(sampler), expected, 1e-4)
    assert model.cached_bytes == backbone.num_layers * 6 * backbone.layer_shape[0] * backbone.layer_shape[1] * 4
    assert sampler.cache_peak_bytes <= model.cached_bytes


# --- memory --------------------------------------------------------------------------------------------------


def test_outputs_are_freed_after_their_last_reader(make_dit, make_graph, layers_of):
    """Counted on the outputs themselves: those alive between two evaluations are those that a later one reads."""
    backbone = make_dit(depth=3)
    graph = make_graph(backbone, num_evaluations=8, reuse=MIXED)
    born = []
    for layer in layers_of(backbone):
        layer.register_forward_hook(lambda _, args, output: born.append(weakref.ref(output)))
    alive = []
    sampler = Sampler(backbone, graph=graph)
    with torch.no_grad():
        sampler.solver.sample(
            sampler.denoiser(LABELS),
            seeded_noise(backbone.input_shape, 0, 3),
            on_evaluation=lambda e: alive.append(sum(ref() is not None for ref in born)),
        )
    assert alive == [sum(counts) for counts in graph.held]


def test_an_own_loop_goes_through_the_times_in_order(backbone, graph):
    sampler, x = Sampler(backbone, graph=graph), seeded_noise(backbone.input_shape, 0, 3)
    denoiser = sampler.denoiser(LABELS)
    with torch.no_grad(), pytest.raises(ValueError, match=r"evaluation 0 of this trajectory is at t = \d+, got 1"):
        denoiser(x, 1.0)
    with torch.no_grad():
        for t in sampler.timesteps:
            denoiser(x, t)
        with pytest.raises(ValueError, match="evaluations of this trajectory have been made; call denoiser"):
            denoiser(x, sampler.timesteps[-1])


@pytest.mark.parametrize("kind", [NotImplementedError, RuntimeError])
def test_other_errors_keep_their_names(backbone, graph, monkeypatch, kind):
    def broken(*_, **__):
        raise kind("my own layer")

    sampler = Sampler(backbone, graph=graph)
    monkeypatch.setattr(sampler.solver, "sample", broken)
    with pytest.raises(kind, match="my own layer"):
        sample(sampler)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_cache_takes_what_was_predicted(backbone, graph, scale, dtype):
    sampler = Sampler(backbone, graph=graph, cfg_scale=scale, cache_dtype=dtype)
    images = sample(sampler)
    size = 6 * backbone.layer_shape[0] * backbone.layer_shape[1] * (4 if dtype is None else 2)
    assert sampler.cache_peak_bytes == sampler.cache_bytes(3) == sampler.lifetimes.num_slots * size
    exact = sample(Sampler(backbone, graph=graph, cfg_scale=scale))
    assert_near(images, exact, 0.1 if dtype else 0)
    assert torch.equal(images, exact) == (dtype is None)


def test_buffers_of_copies_serve_every_trajectory(backbone, graph):
    sampler = Sampler(backbone, graph=graph, cache_dtype=torch.bfloat16)
    first = sample(sampler)

    def buffers():
        (store,) = sampler._stores._idle
        return {slot: buffer.data_ptr() for slot, buffer in store._buffers.items()}

    places = buffers()
    assert torch.equal(sample(sampler), first)
    assert buffers() == places
    assert len(places) == sampler.lifetimes.num_slots


def test_running_out_of_memory_names_the_cache_and_what_lowers_it(backbone, graph, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sampler = Sampler(backbone, graph=graph)
    monkeypatch.setattr(sampler.solver, "sample", full)
    with pytest.raises(MemoryError, match=rf"cache needs {sampler.cache_bytes(3)} bytes.*cache_dtype.*cache_device"):
        sample(sampler)


# --- ahead ---------------------------------------------------------------------------------------------------


def test_conditions_worked_out_ahead_are_those_of_each_evaluation(backbone):
    timesteps, y = (900.0, 500.5, 100.0, 3.0, 1.0), torch.tensor([1, 5])
    whole, two, single = (
        Conditions(backbone, y, timesteps, 2, ahead_bytes=count * 2 * backbone.condition_size * 4)
        for count in (5, 2, 0)
    )
    assert (whole.ahead, two.ahead, single.ahead) == (5, 2, 1)
    for e in (0, 1, 2, 3, 4, 1):
        expected = backbone.condition(torch.full((2,), timesteps[e]), y)
        assert sum(part.numel() for part in expected) == 2 * backbone.condition_size
        for conditions in (whole, two, single):
            for part, exact in zip(conditions.at(e), expected, strict=True):
                torch.testing.assert_close(part, exact, rtol=1e-5, atol=1e-5)


def test_modulations_are_one_product_for_all_evaluations(make_dit, make_graph):
    backbone = make_dit()
    batches = []
    backbone.blocks[0].adaLN_modulation.register_forward_hook(lambda _, args, output: batches.append(len(output)))
    sample(Sampler(backbone, graph=make_graph(backbone, num_evaluations=8), cfg_scale=2.0))
    assert batches == [8 * 4]  # three labels, and the null label of the other three rows once


def test_equal_labels_are_worked_out_once_and_given_to_every_row(backbone):
    timesteps, y = (900.0, 500.5, 1.0), torch.tensor([3, 1, 3, 5, 5, 5])
    conditions = Conditions(backbone, y, timesteps, len(y), ahead_bytes=2 * 3 * backbone.condition_size * 4)
    assert conditions.ahead == 2  # three distinct labels
    for e in (0, 1, 2, 0):
        expected = backbone.condition(torch.full((len(y),), timesteps[e]), y)
        for part, exact in zip(conditions.at(e), expected, strict=True):
            torch.testing.assert_close(part, exact, rtol=1e-5, atol=1e-5)


# --- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.3), ("fp16", 0.03), ("tf32", 1e-5)])
def test_precision_is_of_the_network_and_leaves_the_backbone(backbone, graph, precision, tolerance):
    sampler = Sampler(backbone, graph=graph, precision=precision)
    images = sample(sampler)
    assert next(backbone.parameters()).dtype == torch.float32
    assert images.dtype == torch.float32
    assert_near(images, sample(Sampler(backbone, graph=graph)), tolerance)
    assert (sampler.backbone is backbone) == (precision == "tf32")


def test_a_graph_of_the_weights_fits_their_casts(backbone, graph):
    bound = graph.replace(fingerprint=l2c.backbones.presets.fingerprint(backbone))
    assert Sampler(backbone, graph=bound, precision="bf16").graph is bound


def test_matmul_settings_last_as_long_as_the_sampling(backbone, graph, monkeypatch):
    before = torch.get_float32_matmul_precision()
    seen = []
    sampler = Sampler(backbone, graph=graph, precision="tf32")
    monkeypatch.setattr(
        sampler, "denoiser", lambda y, store: seen.append(torch.get_float32_matmul_precision()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        sample(sampler)
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == before
    with matmuls(None):
        assert torch.get_float32_matmul_precision() == before


def test_onednn_is_refused_where_it_is_not_exact(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("l2c.sampling.execution.precision._onednn_error", lambda: 3e-7)
    assert matmul_setting(None, "onednn", cpu) == "medium"
    assert matmul_setting("fp32", "onednn", cuda) == "highest"
    monkeypatch.setattr("l2c.sampling.execution.precision._onednn_error", lambda: 3e-3)
    with pytest.warns(UserWarning, match=r"'default' is used instead of 'onednn': .* error of 3e-03"):
        assert matmul_setting("fp32", "onednn", cpu) == "highest"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.warns(UserWarning, match="on a processor with AVX2 torch multiplies"):
        assert matmul_setting(None, "onednn", cpu) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int8"}, "unknown precision 'int8'; known are fp32, tf32, bf16, fp16"),
        ({"cache_dtype": "half"}, "unknown cache_dtype 'half'; known are fp32"),
        ({"cache_dtype": torch.int8}, "cache_dtype must be a type of floating-point numbers"),
        ({"cache_device": "abacus"}, "there is no cache_device 'abacus' here"),
        ({"matmul": "blas"}, "unknown matmul 'blas'; known are default, onednn"),
    ],
)
def test_unknown_ways_to_compute_are_refused(make_dit, options, says):
    with pytest.raises(ValueError, match=says):
        Sampler(make_dit(), solver="ddim", num_evaluations=2, **options)


# --- compiling -----------------------------------------------------------------------------------------------


def test_compiled_blocks_need_four_graphs_a_class(backbone, graph, scale):
    """Hold and linear reuse, whole blocks and single layers, several trajectories: four graphs each, no more."""
    graphs: Counter[int] = Counter()

    def counting(module, inputs):
        graphs[len(inputs)] += 1
        return module.forward

    torch._dynamo.reset()
    sampler = Sampler(backbone, graph=graph, cfg_scale=scale).compile(3, backend=counting, progress=False)
    assert sampler.compiled
    compiled = graphs.total()
    expected = sample(Sampler(backbone, graph=graph, cfg_scale=scale))
    for _ in range(2):
        assert_near(sample(sampler), expected, 1e-5)
    classes = 1 if backbone.gated else 2
    assert 0 < graphs.total() == compiled <= 4 * classes  # the warm-up left nothing to compile
    torch._dynamo.reset()


def test_inductor_gives_the_same_images(backbone, graph, scale):
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # falling back would be no test
        sampler = Sampler(backbone, graph=graph, cfg_scale=scale).compile(3, progress=False)
        images = sample(sampler)
    assert_near(images, sample(Sampler(backbone, graph=graph, cfg_scale=scale)), 1e-4)
    torch._dynamo.reset()


def test_a_compiler_that_fails_is_reported_and_done_without(backbone, graph):
    def broken(module, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    with pytest.warns(
        UserWarning, match=r"run uncompiled, because compiling them failed: BackendCompilerFailed: .*no compiler here"
    ):
        sampler = Sampler(backbone, graph=graph).compile(3, backend=broken, progress=False)
    assert not sampler.compiled
    assert torch.equal(sample(sampler), sample(Sampler(backbone, graph=graph)))


def test_a_compiler_that_fails_later_is_done_without_from_then_on(backbone, graph):
    calls = []

    def broken_later(module, inputs):
        calls.append(1)
        if len(inputs[0]) != 3 and len(calls) > 8:
            raise RuntimeError("no compiler any more")
        return module.forward

    torch._dynamo.reset()
    sampler = Sampler(backbone, graph=graph).compile(3, backend=broken_later, progress=False)
    calls += [1] * 8
    with pytest.warns(UserWarning, match="run uncompiled from now on, because compiling one failed") as caught:
        images = sampler.sample(LABELS[:2], seed=0)
    assert len(caught) == 1
    assert not sampler.compiled
    assert_near(images, sample(Sampler(backbone, graph=graph))[:2], 1e-4)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["GPU", "host"])
def test_a_compiled_block_that_runs_out_of_memory_is_no_failed_compilation(backbone, graph, error):
    """Neither in the warm-up nor later: it would run out uncompiled, too, and the sentence on memory helps."""
    full = []

    def backend(module, inputs):
        def run(*arguments):
            if full:
                raise error
            return module.forward(*arguments)

        return run

    torch._dynamo.reset()
    sampler = Sampler(backbone, graph=graph).compile(3, backend=backend, progress=False)
    full.append(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MemoryError, match="out of memory with 3 images; the graph's cache needs"):
            sample(sampler)
        assert sampler.compiled
        with pytest.raises(MemoryError, match="out of memory with 2 images; the graph's cache needs"):
            Sampler(backbone, graph=graph).compile(2, backend=backend, progress=False)
    full.clear()
    assert_near(sample(sampler), sample(Sampler(backbone, graph=graph)), 1e-4)
    torch._dynamo.reset()


# --- capturing -----------------------------------------------------------------------------------------------


def test_without_cuda_capturing_falls_back_with_one_warning(backbone, graph):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    sampler = Sampler(backbone, graph=graph).capture()
    with pytest.warns(UserWarning, match="not captured as a CUDA graph: the backbone is on cpu") as caught:
        images = [sample(sampler) for _ in range(2)]
    assert len(caught) == 1
    assert torch.equal(*images)
    assert torch.equal(images[0], sample(Sampler(backbone, graph=graph)))


def test_obstacles_to_capturing_are_named():
    on_gpu = SimpleNamespace(is_cuda=True)
    assert why_not(on_gpu, offloaded=False) is None
    assert "kept on the host" in why_not(on_gpu, offloaded=True)
    assert "only a CUDA device" in why_not(torch.zeros(1), offloaded=False)


@pytest.mark.parametrize(("solver", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_noise_of_the_steps_is_drawn_before_a_captured_trajectory(make_dit, monkeypatch, solver, options):
    """Stochastic solvers are captured too: what a replay is given leads to the images of the seed."""
    sampler = Sampler(make_dit(), solver=solver, num_evaluations=5, **options)
    expected = sampler.sample(LABELS, seed=3)
    monkeypatch.setattr(
        "l2c.sampling.execution.runner.CapturedTrajectory", lambda run: run
    )  # a replay without a device
    monkeypatch.setattr("l2c.sampling.execution.runner.why_not", lambda x, offloaded: None)
    sampler.capture()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sampler.sample(LABELS, seed=3), expected)
    assert sampler.captured


@torch.no_grad()
def test_weights_that_moved_in_memory_are_captured_anew(make_dit, monkeypatch):
    net, captured = make_dit(), []
    sampler = Sampler(net, solver="ddim", num_evaluations=2)
    monkeypatch.setattr(
        "l2c.sampling.execution.runner.CapturedTrajectory", lambda run: captured.append(1) or run
    )  # a replay without a device
    monkeypatch.setattr("l2c.sampling.execution.runner.why_not", lambda x, offloaded: None)
    sampler.capture()
    for change in (lambda: None, lambda: net.blocks[0].mlp.fc1.weight.mul_(2)):  # read where they lay
        change()
        sampler.sample(LABELS, seed=0)
    assert len(captured) == 1
    held = net.state_dict()  # else the new ones might lie where the old ones did
    net.load_state_dict({name: value.clone() for name, value in held.items()}, assign=True)
    sampler.sample(LABELS, seed=0)
    assert len(captured) == 2


def test_a_captured_trajectory_is_replayed_and_captured_anew_for_another_batch(monkeypatch):
    """The bookkeeping, with a graph that runs what it was given; the real one needs a CUDA device."""

    class Graph:
        def replay(self):
            captured._images.copy_(run(*captured._inputs))

    class Nothing:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def wait_stream(self, _):
            pass

    for name in ("Stream", "stream", "current_stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    runs = []

    def run(x, y):
        runs.append(len(x))
        return x * 2 + y[:, None]

    captured = CapturedTrajectory(run)
    y = torch.tensor([1.0, 2.0])
    for _ in range(2):
        x = torch.randn(2, 3)
        assert torch.equal(captured(x, y), x * 2 + y[:, None])
    assert runs == [2] * 5  # two to warm up, one captured, two replays
    with pytest.warns(UserWarning, match="was captured for 2 images and is captured anew for 1"):
        assert torch.equal(captured(x[:1], y[:1]), x[:1] * 2 + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(captured(x, y), x * 2 + y[:, None])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm_solver_2s", "dpm_solver_2m"])
def test_captured_images_equal_eager_ones(backbone, make_graph, solver, scale):
    graph = make_graph(backbone.cuda(), solver, num_evaluations=8, reuse=MIXED)
    sampler = Sampler(backbone, graph=graph, cfg_scale=scale).capture()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = [sample(sampler, seed) for seed in (0, 1)]
    for seed in (0, 1):
        assert_near(images[seed], sample(Sampler(backbone, graph=graph, cfg_scale=scale), seed), 1e-5)
