"""Many images: labels in turn, batches that change nothing, and the sampler without a graph."""

from __future__ import annotations

import pytest
import torch

from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import uncached_by, uncached_like, uncached_of


def test_labels_go_round():
    assert labels_in_turn(3, 5).tolist() == [0, 1, 2, 0, 1]
    assert labels_in_turn(3, 4, first=5).tolist() == [2, 0, 1, 2]
    assert labels_in_turn(0, 5) is None


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_batches_change_nothing(make_dit, solver, batch_size):
    sampler = Sampler(make_dit(), solver=solver, num_evaluations=3)
    labels, noise = labels_in_turn(5, 5), seeded_noise((4, 8, 8), 0, 5)
    whole = sampler.sample(labels, noise=noise, seed=3)
    drawn = sample_in_batches(sampler, labels, noise, batch_size=batch_size, seed=3)
    torch.testing.assert_close(drawn, whole, rtol=0, atol=1e-3)  # kernels differ with the batch


def test_the_sampler_without_a_graph_agrees_with_the_one_it_came_from(make_dit):
    net = make_dit()
    plain = Sampler(net, solver="ddim", num_evaluations=4, cfg_scale=2.0, eta=0.5)
    solver = {"name": "ddim", "num_evaluations": 4, "cfg_scale": 2.0, "options": {"eta": 0.5}}
    from_config = uncached_by(net, solver)
    graph = all_compute(plain)
    cached = Sampler(net, graph=graph)
    labels, noise = labels_in_turn(5, 2), seeded_noise((4, 8, 8), 0, 2)
    expected = plain.sample(labels, noise=noise, seed=1)
    for sampler in (from_config, uncached_of(graph, net, cfg_scale=2.0), uncached_like(cached)):
        assert sampler.graph is None
        assert torch.equal(sampler.sample(labels, noise=noise, seed=1), expected)
    for sampler in (
        uncached_by(net, solver, num_evaluations=3),
        uncached_of(graph, net, cfg_scale=2.0, num_evaluations=3),
        uncached_like(cached, num_evaluations=3),
    ):
        assert sampler.solver.num_evaluations == 3
        assert sampler.solver.options == {"eta": 0.5}


def all_compute(sampler):
    net = sampler.backbone
    return CacheGraph(
        rows=((True,) * net.num_layers,) * 4,
        layers=net.layer_names,
        timesteps=sampler.timesteps,
        model="DiT",
        solver="ddim",
        solver_options={"eta": 0.5},
        guidance="dit",
        cfg_scale=2.0,
    )
