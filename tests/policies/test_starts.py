"""The rules that a search begins with keep to the budget and leave little of it unused."""

import pytest
import torch

from l2c.calibration.calibration import Calibration
from l2c.calibration.responses import measure_responses
from l2c.policies.best import likely_rules
from l2c.policies.context import Problem
from l2c.policies.gram import refitted
from l2c.policies.registry import make_graph
from l2c.policies.starts import rule_graphs
from l2c.policies.true_error import Judge
from l2c.sampling.sampler import Sampler, seeded_noise

E = 10


@pytest.fixture
def problem(make_dit):
    return Problem.of(Sampler(make_dit(), solver="ddim", num_evaluations=E))


@pytest.mark.parametrize("worth", [8.0, 6.4, 4.0])
def test_rules_keep_to_the_budget(problem, worth):
    graphs = rule_graphs(problem, worth)
    costs = [problem.cost.evaluations_worth(graph) for graph in graphs]
    assert max(costs) <= worth + 0.02
    intervals = [cost for graph, cost in zip(graphs, costs, strict=True) if graph.provenance["method"] == "interval"]
    assert min(intervals) > worth - 2  # what is left over goes into evaluations at the end
    assert len({(graph.rows, graph.weights) for graph in graphs}) == len(graphs)
    assert {"interval", "late_first"} >= {graph.provenance["method"] for graph in graphs}


def test_best_is_no_worse_than_the_rules_it_judges(problem):
    sampler = problem.sampler
    noise = seeded_noise(sampler.backbone.input_shape, 7, 2)
    responses = measure_responses(sampler, torch.tensor([1, 2]), noise, num_probes=2)
    problem = Problem.of(sampler, Calibration({"responses": responses}, problem.blank.binding))
    found = make_graph("best", problem, budget=0.6, steps=0, num_trajectories=4, pool=4)
    judge = Judge.of(sampler, 4, 7, pool=4, batch_size=64)
    rules = likely_rules(problem, 6.0)
    assert rules
    assert judge.error(found) <= min(map(judge.error, rules)) * (1 + 1e-6)


def test_rows_of_a_rule_are_fitted_and_fill_the_budget(problem):
    sampler = problem.sampler
    noise = seeded_noise(sampler.backbone.input_shape, 7, 2)
    responses = measure_responses(sampler, torch.tensor([1, 2]), noise, num_probes=2, max_age=4)
    problem = Problem.of(sampler, Calibration({"responses": responses}, problem.blank.binding))
    rule = make_graph("interval", problem, n=2)
    worth = problem.cost.evaluations_worth(rule) + 0.7
    graph = refitted(problem, rule, worth)
    assert all(
        not bit or now
        for row, of in zip(rule.rows, graph.rows, strict=True)
        for bit, now in zip(row, of, strict=True)
    )
    assert worth - 0.5 < problem.cost.evaluations_worth(graph) <= worth + 0.05
    assert "weighted" in graph.reuse
    assert refitted(problem, make_graph("interval", problem, n=7), 9) is None  # ages beyond 4 were not measured
