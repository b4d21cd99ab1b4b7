"""What only a CUDA device can show; `benchmarks/gpu.sh` runs these there."""

from __future__ import annotations

import warnings

import pytest
import torch

from l2c.calibration.cost import count_macs
from l2c.sampling.sampler import Sampler
from l2c.speed.bench import Bench, Setting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LABELS = [1, 4, 2]


@pytest.fixture
def graph(backbone, make_graph):
    return make_graph(backbone, num_evaluations=8, reuse=("hold",) * 4 + ("linear",) * 4)


def distance(images, expected):
    return float((images.cpu() - expected.cpu()).abs().max() / expected.cpu().std())


def sampler_on_cuda(backbone, graph, **options):
    return Sampler(backbone.cuda(), graph=graph, cfg_scale=2.0, **options)


def test_cuda_images_equal_those_of_the_host(backbone, graph):
    expected = Sampler(backbone, graph=graph, cfg_scale=2.0, precision="fp32").sample(LABELS, seed=3)
    images = sampler_on_cuda(backbone, graph, precision="fp32").sample(LABELS, seed=3)
    assert images.is_cuda
    assert distance(images, expected) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_captured_equals_eager_in_every_precision(backbone, graph, precision):
    eager = sampler_on_cuda(backbone, graph, precision=precision)
    captured = sampler_on_cuda(backbone, graph, precision=precision).capture()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (0, 1, 0):
            expected = eager.sample(LABELS, seed=seed)
            assert distance(captured.sample(LABELS, seed=seed), expected) < 1e-3
    assert captured.captured


@pytest.mark.parametrize("options", [{"cache_device": "cpu"}, {"cache_dtype": "fp32"}])
def test_cuda_a_cache_elsewhere_changes_nothing(backbone, graph, options):
    expected = sampler_on_cuda(backbone, graph).sample(LABELS, seed=3)
    images = sampler_on_cuda(backbone, graph, **options).sample(LABELS, seed=3)
    assert distance(images, expected) < 1e-5


def test_cuda_compiled_and_captured_equals_eager(backbone, graph):
    expected = sampler_on_cuda(backbone, graph).sample(LABELS, seed=3)
    sampler = sampler_on_cuda(backbone, graph).compile(len(LABELS), progress=False).capture()
    for _ in range(2):
        assert distance(sampler.sample(LABELS, seed=3), expected) < 1e-3
    assert sampler.compiled
    assert sampler.captured


def test_cuda_memory_of_the_cache_is_what_the_lifetimes_say(make_dit, make_graph):
    """On outputs large enough that the allocator's rounding does not tell."""
    net = make_dit(depth=4, input_size=32, hidden_size=128, num_heads=4).cuda()
    rows = [[True] * 8, [False] * 8] * 3
    graph = make_graph(net, num_evaluations=6, rows=rows)
    labels, noise = torch.arange(4) % 5, torch.randn(4, *net.input_shape)
    peaks = []
    for reuse in (None, graph):
        given = {"solver": "ddim", "num_evaluations": 6} if reuse is None else {"graph": reuse}
        sampler = Sampler(net, cfg_scale=2.0, **given)
        sampler.sample(labels, noise=noise)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sampler.sample(labels, noise=noise)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] - peaks[0] <= 1.1 * sampler.cache_bytes(4)


def test_cuda_bench_measures_memory_and_stays_near(backbone, graph):
    bench = Bench(backbone.cuda(), graph, count_macs(backbone), cfg_scale=2.0)
    settings = [Setting(2, "fp32", "default", mode) for mode in ("published", "eager", "captured")]
    for speed in bench.run(settings, repetitions=2, by_evaluation=False):
        assert speed.device_bytes > 0
        assert speed.error < 1e-3
    assert speed.setting.mode == "captured"
