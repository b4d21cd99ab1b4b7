"""Many threads on one sampler, two on one pipeline, and memory that stays flat over thousands of calls."""

from __future__ import annotations

import gc
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import l2c

LABELS = torch.tensor([1, 4, 2])


def resident():
    """Return the memory that this process holds now, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_sixteen_threads_share_a_sampler_for_long(backbone, make_graph, times, counted):
    sampler = l2c.Sampler(backbone, graph=make_graph(backbone, num_evaluations=8, reuse=("hold", "linear") * 4))
    expected = [sampler.sample(LABELS, seed=seed) for seed in range(16)]
    rounds = times(1, 60)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: sampler.sample(LABELS, seed=i % 16), range(16 * rounds)))
    wrong = sum(not torch.equal(image, expected[i % 16]) for i, image in enumerate(found))
    counted(trajectories=16 * rounds, wrong=wrong)
    assert not wrong


def test_hundreds_of_threads_start_at_once(make_dit, make_graph, times, counted):
    net = make_dit()
    sampler = l2c.Sampler(net, graph=make_graph(net, reuse=("hold", "linear") * 3))
    expected = [sampler.sample(LABELS, seed=seed) for seed in range(4)]
    count = times(64, 512)
    begin = threading.Barrier(count)

    def draw(i):
        begin.wait()
        return torch.equal(sampler.sample(LABELS, seed=i % 4), expected[i % 4])

    with ThreadPoolExecutor(count) as pool:
        right = sum(pool.map(draw, range(count)))
    counted(threads=count, wrong=count - right)
    assert right == count


@pytest.fixture
def pipe():
    """Return a tiny pipeline with a graph, and the function that calls it with a seed."""
    pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    from tiny_diffusers import PIPELINES

    from l2c.integrations.diffusers.layers import find_layers

    made = PIPELINES["dit"]()
    made.set_progress_bar_config(disable=True)
    made.scheduler.set_timesteps(4)
    layers = find_layers(made.transformer)
    rows = [[e % 2 == 0] * len(layers) for e in range(4)]
    times_of = tuple(map(float, made.scheduler.timesteps))
    kind = type(made.scheduler).__name__
    l2c.apply(
        made, l2c.CacheGraph(rows=rows, layers=layers, timesteps=times_of, model="DiTTransformer2DModel", solver=kind)
    )

    def call(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.from_numpy(made([3], num_inference_steps=4, generator=generator, output_type="np").images)

    return call


def test_two_threads_on_one_pipeline_give_right_images_or_a_sentence(pipe, times, counted):
    expected = [pipe(seed) for seed in range(2)]

    def attempt(i):
        try:
            return torch.equal(pipe(i % 2), expected[i % 2])
        except ValueError as error:
            return None if str(error).isprintable() else str(error)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(attempt, range(times(20, 400))))
    counted(right=found.count(True), refused=found.count(None), wrong=found.count(False))
    assert set(found) <= {True, None}
    assert found.count(True)
    assert torch.equal(pipe(0), expected[0])  # and nothing stays behind


def test_memory_stays_flat_over_trajectories(make_dit, make_graph, times, counted):
    net = make_dit()
    sampler = l2c.Sampler(net, graph=make_graph(net))
    count = times(40, 5000)
    for seed in range(min(200, count)):
        sampler.sample(LABELS, seed=seed)
    before = resident()
    for seed in range(count):
        sampler.sample(LABELS, seed=seed)
    growth = resident() / before - 1
    counted(trajectories=count, growth=f"{100 * growth:.2f} %")
    assert growth < 0.01


def test_memory_stays_flat_over_pipeline_calls(pipe, times, counted):
    count = times(10, 1000)
    for seed in range(min(50, count)):
        pipe(seed)
    before = resident()
    for seed in range(count):
        pipe(seed)
    growth = resident() / before - 1
    counted(calls=count, growth=f"{100 * growth:.2f} %")
    assert growth < 0.01
