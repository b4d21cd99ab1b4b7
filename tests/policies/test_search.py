"""BudCache finds the best choice of whole evaluations; L2P's weights are least squares on the features."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from l2c.policies.context import PolicyContext
from l2c.policies.methods.budcache import _moves
from l2c.policies.methods.l2p import fitted, measure_products
from l2c.policies.registry import make_graph
from l2c.policies.true_error import TrueError
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import Sampler

E = 6


@pytest.fixture
def context(make_dit):
    return PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=E))


def test_budcache_finds_the_least_error_of_all_choices(context):
    worth = context.cost.evaluations_worth(make_graph("interval", context, n=2))  # three whole evaluations
    graph = make_graph("budcache", context, budget=worth, num_trajectories=4, steps=20)
    assert sorted(map(sum, graph.rows)) == [0] * 3 + [graph.num_layers] * 3
    true_error = TrueError.of(context.sampler, 4, 7, pool=0, batch_size=64)
    errors = {}
    for others in combinations(range(1, E), 2):
        rows = [[e in (0, *others)] * graph.num_layers for e in range(E)]
        errors[others] = true_error.error(context.graph(rows, "test"))
    assert true_error.error(graph) == pytest.approx(min(errors.values()))
    assert max(errors.values()) > 1.2 * min(errors.values())


def test_budcache_passes_over_choices_whose_images_are_not_finite(context, monkeypatch):
    worth = context.cost.evaluations_worth(make_graph("interval", context, n=2))
    measured, first = TrueError._error_of, []

    def diverging(self, sampler):
        first.append(sampler.graph.rows)
        return math.inf if sampler.graph.rows == first[0] else measured(self, sampler)

    monkeypatch.setattr(TrueError, "_error_of", diverging)
    how = {"budget": worth, "num_trajectories": 2, "steps": 4}
    graph = make_graph("budcache", context, **how)
    assert graph.rows in first[1:]
    assert graph.rows != first[0]
    monkeypatch.setattr(TrueError, "_error_of", lambda *_: math.inf)
    with pytest.raises(ValueError, match="every graph tried draws images of NaN"):
        make_graph("budcache", context, **how, seed=8)


def test_moves_keep_the_first_evaluation_and_the_number():
    near = set(_moves((0, 2, 3), 6, farthest=1))
    assert near == {(0, 1, 3), (0, 2, 4)}
    assert all(len(chosen) == 3 and chosen[0] == 0 for chosen in _moves((0, 2, 3), 6, farthest=6))


def test_weights_on_features_are_least_squares():
    features = np.random.default_rng(0).normal(size=(5, 40))
    weights = fitted(features @ features.T, 4, [3, 1, 0])
    assert sum(weights) == pytest.approx(1)

    def distance(weights):
        return np.square(features[4] - weights @ features[[3, 1, 0]]).sum()

    least = distance(np.array(weights))
    for change in ((0.01, -0.01, 0), (0, 0.01, -0.01), (-0.01, 0, 0.01)):
        assert distance(np.array(weights) + change) > least
    assert fitted(features @ features.T, 4, [3]) == (1.0,)


def test_l2p_forecasts_features_better_than_taylor(context):
    graph = make_graph("l2p", context, n=2, phase=1)
    taylor = make_graph("interval", context, n=2, phase=1, reuse="taylor2")
    assert graph.rows == taylor.rows
    products = measure_products(context.sampler, 16, batch_size=8, seed=7)
    errors = []
    for made in (graph, taylor):
        total = 0.0
        for e, row in enumerate(made.rows):
            for layer, fresh in enumerate(row):
                computed = [s for s in range(e) if made.rows[s][layer]][::-1]
                if not fresh:
                    mix = np.zeros(E)
                    mix[e] = -1
                    mix[computed[: len(made.entry_weights[e][layer])]] = made.entry_weights[e][layer]
                    total += mix @ products[layer] @ mix
        errors.append(total)
    assert errors[0] < errors[1]
    assert Sampler(context.sampler.backbone, graph=graph).sample(torch.tensor([1]), seed=0).isfinite().all()


def test_where_the_solver_adds_noise_l2p_holds_and_budcache_refuses(make_dit):
    noisy = PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=E, eta=0.5))
    assert set(make_graph("l2p", noisy).reuse) == {"hold"}
    with pytest.raises(ValueError, match="budcache compares images from the same noise, but ddim adds noise"):
        make_graph("budcache", noisy, budget=0.6)


def test_more_outputs_than_a_graph_may_read_are_refused(context):
    with pytest.raises(ValueError, match="order must be a whole number >= 2 and <= 4, got 5"):
        make_graph("l2p", context, order=5)


def test_a_second_budget_measures_no_products_again(context, monkeypatch):
    passes, full = [], GuidedBackbone.full
    monkeypatch.setattr(GuidedBackbone, "full", lambda self, x, t: passes.append(t) or full(self, x, t))
    graphs = [make_graph("l2p", context, budget=budget, num_trajectories=4, batch_size=4) for budget in (0.7, 0.5)]
    assert graphs[0].rows != graphs[1].rows
    assert len(passes) == E
    measure_products(context.sampler, 4, batch_size=4, seed=8)  # other noises
    other = PolicyContext.of(Sampler(context.sampler.backbone, solver="ddim", num_evaluations=E))
    measure_products(other.sampler, 4, batch_size=4, seed=7)
    assert len(passes) == 3 * E
