"""One sampler in many threads, and copies of samplers."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import l2c

LABELS = torch.tensor([1, 4, 2])
REUSE = ("hold", "linear") * 4


@pytest.mark.parametrize(
    "ways", [{}, {"cache_dtype": "bf16"}, {"precision": "tf32"}], ids=["plain", "copies", "tf32"]
)
def test_sixteen_threads_share_a_sampler(backbone, make_graph, often, ways):
    graph = make_graph(backbone, num_evaluations=8, reuse=REUSE)
    sampler = l2c.Sampler(backbone, graph=graph, **ways)
    seeds = list(range(16)) * 2
    expected = [sampler.sample(LABELS, seed=seed) for seed in seeds]
    alone = sampler.cache_peak_bytes
    setting = torch.get_float32_matmul_precision()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: sampler.sample(LABELS, seed=seed), seeds))
    assert [torch.equal(a, b) for a, b in zip(expected, found, strict=True)] == [True] * len(seeds)
    assert sampler.cache_peak_bytes == alone  # of one trajectory, not of all together
    assert torch.get_float32_matmul_precision() == setting


def test_sixteen_threads_share_compiled_blocks(make_dit, make_graph, often):
    net = make_dit()
    sampler = l2c.Sampler(net, graph=make_graph(net)).compile(3, backend="eager", progress=False)
    expected = [sampler.sample(LABELS, seed=seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: sampler.sample(LABELS, seed=seed), range(16)))
    assert sampler.compiled
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_gives_the_same_images_and_shares_nothing(make_dit, make_graph, copied, compiled):
    net = make_dit()
    sampler = l2c.Sampler(net, graph=make_graph(net), cache_dtype="bf16")
    if compiled:
        sampler.compile(3, backend="eager", progress=False)
    expected = sampler.sample(LABELS, seed=0)
    twin = copied(sampler)
    assert torch.equal(twin.sample(LABELS, seed=0), expected)
    assert twin.compiled == compiled
    for weight in twin.backbone.parameters():
        weight.data.zero_()
    assert torch.equal(sampler.sample(LABELS, seed=0), expected)
    assert twin.cache_peak_bytes == sampler.cache_peak_bytes > 0


def test_a_trajectory_that_breaks_off_leaves_nothing_behind(backbone, make_graph):
    graph = make_graph(backbone)
    sampler = l2c.Sampler(backbone, graph=graph)
    expected = sampler.sample(LABELS, seed=0)

    def stop(evaluation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler._trajectory(torch.randn(3, *backbone.input_shape), LABELS, on_evaluation=stop)
    (store,) = sampler._stores._idle
    assert store.nbytes == 0
    assert torch.equal(sampler.sample(LABELS, seed=0), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_goes_on_from_the_middle_of_a_trajectory(make_dit, make_graph, copied):
    net = make_dit()
    sampler = l2c.Sampler(net, graph=make_graph(net))
    x, times = torch.ones(3, *net.input_shape), sampler.timesteps
    with torch.no_grad():
        denoiser = sampler.denoiser(LABELS)
        for t in times[: len(times) // 2]:
            denoiser(x, t)
        twin = copied(denoiser)
        expected = [denoiser(x, t) for t in times[len(times) // 2 :]]
        found = [twin(x, t) for t in times[len(times) // 2 :]]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
