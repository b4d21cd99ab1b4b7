"""Public objects in a process that is spawned: pickled there and back, they do what they did here."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest
import torch

import l2c
from l2c.backbones.presets import model_preset
from l2c.policies.context import PolicyContext
from l2c.policies.registry import POLICIES, make_graph


class Net(torch.nn.Module):
    """Three residual convolutions; t enters by its cosine."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))

    def forward(self, x, t):
        for block in self.blocks:
            x = x + block(x) * torch.cos(t)[:, None, None, None]
        return x


def drawn(sampler):
    return sampler.sample([0, 1] if sampler.backbone.num_labels else None, noise=torch.ones(2, 1, 4, 4))


def graph_of(calibration):
    return calibration.graph(0.7, num_steps=7)


def made_by(context):
    return make_graph("interval", context, n=2)


def called(policy, context):
    return policy(context, n=2)


def itself(value):
    return value


@pytest.fixture(scope="module")
def work(make_dit):
    """Return functions by name, each with the arguments that it is to be called with."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = l2c.wrap(Net(), ["blocks.*"], timestep="t", input_shape=(1, 4, 4), name="net")
    dit = make_dit(input_size=4, in_channels=1)
    found = {}
    for name, backbone in (("wrap", wrapped), ("DiT", dit), ("whole", l2c.WholeOutput(dit))):
        sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=6)
        context = PolicyContext.of(sampler)
        cached = l2c.Sampler(backbone, graph=made_by(context))
        drawn(cached)  # what a call leaves behind is pickled too
        found |= {name: (drawn, sampler), f"{name} cached": (drawn, cached), f"{name} context": (made_by, context)}
    sampler = found["wrap"][1]
    how = {"num_trajectories": 1, "batch_size": 1, "true_errors": 0, "responses": {"num_probes": 1}}
    calibration = l2c.Calibration.measure(sampler, **how)
    graph = graph_of(calibration)
    ladder = calibration.reachable([0.9, 0.7])
    return found | {
        "calibration": (graph_of, calibration),
        "method": (calibration.graph, 0.7),
        "policy": (called, POLICIES["interval"], found["DiT context"][1]),
        "sample": (sampler.sample, None, torch.ones(1, 1, 4, 4)),
        **{f"{value!r}"[:20]: (itself, value) for value in (graph, l2c.CacheGraphs({"unet": graph}))},
        "rungs": (list, ladder),
        "preset": (itself, model_preset("dit_digits")),
    }


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def run(parts):
    function, *arguments = parts
    if function.__name__ == "sample":
        return function(arguments[0], noise=arguments[1])
    return function(*arguments)


def test_a_spawned_process_does_the_same(work):
    expected = {name: run(parts) for name, parts in work.items()}
    assert len(expected) > 12
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for name, found in zip(work, pool.map(run, work.values()), strict=True):
            assert same(found, expected[name]), name


def test_a_pickle_of_a_pickle_is_the_same(work):
    for name, parts in work.items():
        again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(parts))))
        assert same(run(again), run(parts)), name
