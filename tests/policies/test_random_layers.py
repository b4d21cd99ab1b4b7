"""Random layers at equal MACs."""

import pytest
import torch

from l2c.calibration.cost import count_macs
from l2c.policies.methods.random_layers import random_layers
from l2c.sampling.correction import reused_entries, save_correction
from l2c.sampling.sampler import Sampler
from l2c.sampling.unrolled import with_slopes


@pytest.fixture
def tiny_dit(make_dit):
    return make_dit()


def test_macs_are_met_within_half_a_layer_and_only_routed_rows_change(tiny_dit, make_graph):
    graph, cost = make_graph(tiny_dit), count_macs(tiny_dit)
    least = cost.evaluations_worth(
        graph.replace(rows=[(e not in graph.routed,) * graph.num_layers for e in range(graph.num_evaluations)])
    )
    for share in (0.0, 0.3, 0.7, 1.0):
        target = least + share * (graph.num_evaluations - least)
        drawn = random_layers(graph, cost, seed=1, evaluations_worth=target)
        assert abs(cost.evaluations_worth(drawn) - target) <= max(cost.layers) / cost.evaluation / 2 + 1e-9
        assert all(all(row) for e, row in enumerate(drawn.rows) if e not in graph.routed)


def test_seeds_differ_and_repeat(tiny_dit, make_graph):
    graph, cost = make_graph(tiny_dit), count_macs(tiny_dit)
    assert random_layers(graph, cost, seed=1) == random_layers(graph, cost, seed=1)
    assert random_layers(graph, cost, seed=1).rows != random_layers(graph, cost, seed=2).rows


def test_a_target_out_of_reach_names_the_range(tiny_dit, make_graph):
    graph, cost = make_graph(tiny_dit), count_macs(tiny_dit)
    with pytest.raises(ValueError, match="the reachable range is"):
        random_layers(graph, cost, seed=0, evaluations_worth=0.5)


def test_random_layers_of_a_graph_with_slopes_and_a_correction_hold(tiny_dit, make_graph, tmp_path):
    graph = make_graph(tiny_dit)
    entries = reused_entries(graph)
    graph = with_slopes(graph, torch.full((len(entries),), 0.5))
    ones = torch.ones(len(entries), tiny_dit.layer_shape[1])
    graph = save_correction(tmp_path / "scales.safetensors", graph, ones, 0 * ones)
    drawn = random_layers(graph, count_macs(tiny_dit), seed=0)
    assert set(drawn.reuse) == {"hold"}
    assert drawn.correction is None
    Sampler(tiny_dit, graph=drawn)
