"""The rules that a search begins with keep to the budget and leave little of it unused."""

import math

import pytest
import torch

from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.policies.best import likely_rules
from l2c.policies.candidates import rule_graphs
from l2c.policies.context import PolicyContext
from l2c.policies.exchange import exchanged, makers
from l2c.policies.gram import refitted
from l2c.policies.methods.l2p import measure_products
from l2c.policies.registry import make_graph
from l2c.policies.true_error import TrueError
from l2c.sampling.sampler import Sampler, seeded_noise

E = 10


@pytest.fixture
def context(make_dit):
    return PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=E))


def measured(context, **options):
    """Return the context with responses of two trajectories in its calibration."""
    sampler = context.sampler
    noise = seeded_noise(sampler.backbone.input_shape, 7, 2)
    responses = measure_responses(sampler, torch.tensor([1, 2]), noise, num_probes=2, **options)
    return PolicyContext.of(sampler, Measurements({"responses": responses}, context.blank.binding))


@pytest.mark.parametrize("worth", [8.0, 6.4, 4.0])
def test_rules_keep_to_the_budget(context, worth):
    graphs = rule_graphs(context, worth)
    costs = [context.cost.evaluations_worth(graph) for graph in graphs]
    assert max(costs) <= worth + 0.02
    intervals = [cost for graph, cost in zip(graphs, costs, strict=True) if graph.provenance["method"] == "interval"]
    assert min(intervals) > worth - 2  # what is left over goes into evaluations at the end
    assert len({(graph.rows, graph.entry_weights) for graph in graphs}) == len(graphs)
    assert {"interval", "late_first"} >= {graph.provenance["method"] for graph in graphs}


def test_best_is_no_worse_than_the_rules_it_judges(context):
    context = measured(context)
    sampler = context.sampler
    found = make_graph("best", context, budget=0.6, steps=0, num_trajectories=4, pool=4)
    true_error = TrueError.of(sampler, 4, 7, pool=4, batch_size=64)
    rules = likely_rules(context, 6.0, true_error)
    errors = [true_error.error(rule) for rule in rules]
    assert errors == sorted(errors)
    assert errors[0] == min(map(true_error.error, rule_graphs(context, 6.0)))
    assert true_error.error(found) <= min(map(true_error.error, rules)) * (1 + 1e-6)


def test_best_computes_everything_where_the_budget_allows_it(context):
    context = measured(context)
    found = make_graph("best", context, budget=1.0, steps=1, num_trajectories=2, pool=2)
    assert found.num_reused == 0


def test_best_is_refused_where_no_images_are_finite(context, monkeypatch):
    monkeypatch.setattr(TrueError, "_error_of", lambda *_: math.inf)
    with pytest.raises(ValueError, match="every graph tried draws images of NaN"):
        make_graph("best", measured(context), budget=0.6, steps=0, num_trajectories=2, pool=2, exchanges=4)


def test_exchanging_rows_ends_where_no_neighbours_are_better(context):
    context = measured(context, max_age=9)
    sampler = context.sampler
    judge = TrueError.of(sampler, 4, 7, pool=4, batch_size=64).thinned(2)
    assert len(judge.noise) == 2
    assert float(judge.weights.sum()) == pytest.approx(1)
    start = make_graph("interval", context, n=4, reuse="taylor2")
    products = measure_products(sampler, 4, batch_size=4, seed=7)
    makes = makers(context, products, context.cost.evaluations_worth(start))
    found = exchanged(start, makes, judge, tries=60)
    assert context.cost.evaluations_worth(found) == context.cost.evaluations_worth(start)
    assert judge.error(found) < judge.error(start)
    assert sorted(found.rows) == sorted(start.rows)
    assert exchanged(found, makes, judge, tries=60).rows == found.rows
    assert exchanged(start, makes, judge, tries=2).rows == start.rows


def test_rows_are_fitted_in_features_where_responses_do_not_reach(context):
    context = measured(context, max_age=2)
    sampler = context.sampler
    products = measure_products(sampler, 4, batch_size=4, seed=7)
    rule = make_graph("l2p", context, n=5, phase=3, order=4, num_trajectories=4, batch_size=4)
    in_image_space, in_features = makers(context, products, 5.0)
    assert in_image_space(rule.rows) is None
    assert in_features(rule.rows).weights == rule.weights


def test_rows_of_a_rule_are_fitted_and_fill_the_budget(context):
    context = measured(context, max_age=4)
    rule = make_graph("interval", context, n=2)
    worth = context.cost.evaluations_worth(rule) + 0.7
    graph = refitted(context, rule, worth)
    assert all(
        not bit or now
        for row, of in zip(rule.rows, graph.rows, strict=True)
        for bit, now in zip(row, of, strict=True)
    )
    assert worth - 0.5 < context.cost.evaluations_worth(graph) <= worth + 0.05
    assert "weighted" in graph.reuse
    assert refitted(context, make_graph("interval", context, n=7), 9) is None  # ages beyond 4 were not measured


def test_fewer_noises_keep_the_shares_of_rare_ones_and_all_kinds_of_labels(context):
    whole = TrueError.of(context.sampler, 24, 7, pool=96)
    fewer = whole.thinned(3)
    assert len(whole.noise) == 3 * len(fewer.noise) == 24
    assert float(whole.weights.sum()) == pytest.approx(float(fewer.weights.sum())) == pytest.approx(1)
    rare = [float(each.weights[each.weights < each.weights.max()].sum()) for each in (whole, fewer)]
    assert rare[0] == pytest.approx(rare[1]) == pytest.approx(6 / 96)
    assert len(set(fewer.labels.tolist())) > 2  # not every third one of labels that go round
    assert TrueError.of(context.sampler, 4, 7, pool=4).thinned(1).weights.tolist() == [0.25] * 4
