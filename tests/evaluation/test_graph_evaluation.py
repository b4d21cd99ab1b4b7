"""Comparisons, reports, latencies and pictures."""

import json

import pytest
import torch

from l2c.calibration.cost import count_macs
from l2c.evaluation.graph_evaluation import evaluate_samplers
from l2c.evaluation.graph_report import table, write_report
from l2c.policies.methods.random_layers import random_layers
from l2c.report.figures import graph_heatmap, router_heatmap, save_figure
from l2c.report.sample_grid import sample_grid
from l2c.report.table import markdown_table
from l2c.sampling.sampler import Sampler
from l2c.speed.latency import Latency, alternate


@pytest.fixture
def tiny_dit(make_dit):
    return make_dit()


@pytest.fixture
def samplers(tiny_dit, make_graph):
    graph = make_graph(tiny_dit)
    settings = {"solver": graph.solver, "cfg_scale": 2.0}
    return graph, {
        "uncached": [Sampler(tiny_dit, num_evaluations=graph.num_evaluations, **settings)],
        "graph": [Sampler(tiny_dit, graph=graph, cfg_scale=2.0)],
        "fewer steps": [Sampler(tiny_dit, num_evaluations=3, **settings)],
        "random": [
            Sampler(tiny_dit, graph=random_layers(graph, count_macs(tiny_dit), seed=seed), cfg_scale=2.0)
            for seed in range(2)
        ],
    }


def test_comparison_and_report(samplers, tiny_dit, tmp_path):
    graph, methods = samplers
    cost = count_macs(tiny_dit)
    evaluation = evaluate_samplers(
        methods, cost=cost, num_images=5, seed=3, batch_size=2, timing_batch=1, timing_repetitions=2
    )
    uncached, cached, fewer, random = evaluation.results
    assert uncached.error.mse == 0
    assert uncached.removed == 0
    assert cached.error.mse > 0
    assert cached.removed == graph.removed_fraction_overall
    assert cached.evaluations_worth == pytest.approx(cost.evaluations_worth(graph))
    assert fewer.evaluations_worth == 3
    assert random.num_draws == 2
    assert random.evaluations_worth == pytest.approx(cached.evaluations_worth, rel=0.1)
    assert [row.name for row in evaluation.samples] == ["graph", "fewer steps", "random (one of 2 draws)"]

    path = write_report(tmp_path, graph, evaluation, cost, command="python scripts/evaluate.py")
    text = path.read_text()
    assert table(evaluation, cost) in text
    assert "![samples from the same noise](samples.png)" in text
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in numbers["results"]] == list(methods)
    assert numbers["results"][0]["error"]["psnr"] is None  # infinite


def test_latencies_alternate_and_refer_to_the_first():
    calls: list[str] = []
    result = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=3)
    assert calls == ["a", "b"] * 2 + ["b", "a"] + ["a", "b"]  # one warm-up each, then forth, back, forth
    assert result["a"].speed_up == 1.0
    assert result["b"].repetitions == 3


def test_ratios_are_those_of_single_rounds():
    fast = Latency(2.0, 0.0, 1.0, times=(1.0, 2.0, 4.0))
    slow = Latency(4.0, 0.0, 0.5, times=(3.0, 4.0, 4.0))
    assert fast.ratio(slow) == (2.0, 1.5, 2.5)


def test_table_lines_up():
    lines = markdown_table([("a", "long"), ("value", "1")]).splitlines()
    assert lines == ["| a     | long |", "|-------|------|", "| value | 1    |"]


def test_pictures_are_written_whole(tiny_dit, make_graph, tmp_path):
    graph = make_graph(tiny_dit)
    weights = torch.rand(len(graph.routed), graph.num_layers)
    figures = {
        "graph.png": graph_heatmap(graph),
        "routers.png": router_heatmap(weights, graph.routed, graph.timesteps, step=10),
        "grey.png": sample_grid({"a": torch.zeros(2, 1, 4, 4)}, [0, 1]),
        "latents.svg": sample_grid({"a": torch.zeros(2, 4, 4, 4), "b": torch.ones(2, 4, 4, 4)}),
    }
    for name, figure in figures.items():
        save_figure(figure, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(figures)
    assert all((tmp_path / name).stat().st_size > 500 for name in figures)
