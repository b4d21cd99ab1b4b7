"""One calibration of the layers and of the whole output: what is measured, kept, and chosen from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import l2c
from l2c.calibration.target import target_of
from l2c.diffusion import make_solver
from l2c.policies import true_error
from l2c.policies.budget import BudgetOutOfReach
from l2c.policies.calibration import OfBoth
from l2c.policies.context import PolicyContext
from l2c.policies.ladder import preferred
from l2c.policies.mixed import as_both
from l2c.policies.registry import make_graph
from l2c.sampling.inputs import check_images
from l2c.sampling.uncached import uncached_like

SETTINGS = {"num_trajectories": 4, "batch_size": 4, "responses": {"num_probes": 2}}


@pytest.fixture(scope="module")
def sampler(make_dit):
    return l2c.Sampler(make_dit(), solver="ddim", num_evaluations=8, cfg_scale=2.0)


@pytest.fixture(scope="module")
def calibration(sampler):
    return l2c.Calibration.measure(sampler, true_errors=4, **SETTINGS)


def test_responses_to_the_output_are_those_measured_alone(sampler, calibration):
    whole = l2c.Sampler(l2c.WholeOutput(sampler.backbone), solver="ddim", num_evaluations=8, cfg_scale=2.0)
    alone = l2c.Calibration.measure(whole, true_errors=0, **SETTINGS)
    part = calibration.of_output()
    assert calibration.part("output").binding == calibration.part(["output"]).binding == part.binding
    known = {"responses", "responses_ahead"}
    assert set(part.tensors) == set(alone.tensors) == known | {f"{name}_between" for name in known}
    for name, tensor in alone.tensors.items():
        assert torch.allclose(part.tensors[name], tensor, atol=1e-4 * float(tensor.abs().max()))
    assert (part.binding, part.cost, part.grid) == (alone.binding, alone.cost, alone.grid)
    assert alone.of_output() is None


def test_the_graph_of_least_expected_error_is_returned_and_the_output_of_a_tie(calibration):
    for budget in (0.75, 0.5, 0.4):
        chosen = calibration.graph(budget)
        layers = calibration.graph(budget, whole_outputs=False)
        output = calibration.of_output().graph(budget)
        both = OfBoth(calibration).graph(budget)
        assert output.layers == ("output",) != layers.layers
        assert both.layers == (*layers.layers, "output")
        kinds = (output, both, layers)
        errors = [graph.measured["expected_mse"] for graph in kinds]
        worth = [graph.measured["evaluations_worth_of_macs"] for graph in kinds]
        least = kinds[errors.index(min(errors))]
        most = worth[kinds.index(least)] + 0.1
        ties = [e <= 1.5 * min(errors) and w <= most for e, w in zip(errors, worth, strict=True)]
        assert chosen == kinds[ties.index(True)]
        assert calibration.preferred(budget).graph(budget) == chosen


def test_a_sampler_takes_the_kind_of_least_true_error(calibration, sampler, make_dit, monkeypatch, caplog):
    monkeypatch.setattr(true_error, "NUM_JUDGED", 4)
    other = uncached_like(sampler, num_evaluations=12)
    graph = calibration.graph(0.7, sampler=other)
    judged = graph.provenance["judged"]
    errors = judged["true_errors"]
    assert (graph.timesteps, judged["noises"], len(errors)) == (other.solver.timesteps, 4, 3)
    kind = {1: "output", 5: "layers and output"}.get(len(graph.layers), "layers")
    own = graph.measured["true_mse"]
    assert own in errors[kind]
    assert own <= 1.25 * min(error for found in errors.values() for error in found)
    judge = true_error.TrueError.of(other, 4, 7, pool=0, first=4)  # noises 4.. of seed 7: 0..3 were measured
    assert judge.error(graph) == pytest.approx(own)
    assert f"; true one of a few noises {own:.3g}; made by gram" in graph.summary()
    assert judged["fewer_steps"] == pytest.approx(judge.error_without_cache(8))
    assert l2c.CacheGraph.from_json(graph.to_json()) == graph
    with monkeypatch.context() as patch:  # what is known is not drawn again
        patch.setattr(true_error, "sample_in_batches", None)
        assert calibration.graph(0.7, sampler=other) == graph
    assert calibration.graph(0.7, sampler=sampler).timesteps == sampler.solver.timesteps  # those measured
    for layers in (1, 4, 5):
        found = lambda self, graph, layers=layers: 1.0 + (len(graph.layers) != layers)  # noqa: E731
        monkeypatch.setattr(true_error.TrueError, "error", found)
        monkeypatch.setattr(true_error.Judge, "_without_cache", lambda *_: 0.5)
        assert len(calibration.graph(0.7, sampler=other).layers) == layers
    assert "8 evaluations without a cache err less than the graph, by 0.5 in the place of 1" in caplog.text
    cached = l2c.Sampler(sampler.backbone, graph=graph)
    for wrong, sentence in (
        ({"sampler": other, "num_steps": 12}, "sampler= says steps and solver; leave"),
        ({"sampler": cached}, "measured on an uncached sampler, got one with a cache graph"),
        (
            {"sampler": l2c.Sampler(make_dit(seed=1), solver="ddim", num_evaluations=8, cfg_scale=2.0)},
            "was made for weights",
        ),
        ({"sampler": "ddim"}, "on an l2c.Sampler, got str"),
        ({"batch_size": 2}, "batch_size= is of what sampler= draws"),
    ):
        with pytest.raises(ValueError, match=sentence):
            calibration.graph(0.5, **wrong)


def test_of_ties_the_whole_output_is_preferred_and_no_other(calibration):
    output = calibration.of_output().graph(0.5)
    layers, both = calibration.graph(0.5, whole_outputs=False), OfBoth(calibration).graph(0.5)
    worth = output.measured["evaluations_worth_of_macs"]
    erring = {1.0: both, 1.4: layers, 1.45: output, 1.6: output.replace(cfg_scale=None)}
    one, first, whole, far = (
        graph.replace(measured={"expected_mse": error, "evaluations_worth_of_macs": worth})
        for error, graph in erring.items()
    )
    assert preferred([first, one]) is one
    assert preferred([far, first, one]) is one
    assert preferred([first, whole, one]) is preferred([whole, first, one]) is whole


def test_graphs_of_images_that_are_not_finite_are_not_taken(calibration, sampler, monkeypatch):
    monkeypatch.setattr(true_error, "NUM_JUDGED", 2)
    draws, diverging, drawn = l2c.Sampler.sample, {1, 5}, set()

    def sample(self, *args, **how):
        images = draws(self, *args, **how)
        drawn.add(len(images))
        check_images(images * math.nan if self.graph and len(self.graph.layers) in diverging else images)
        return images

    monkeypatch.setattr(l2c.Sampler, "sample", sample)
    graph = calibration.graph(0.7, sampler=uncached_like(sampler), batch_size=1)
    assert drawn == {1}
    assert graph.provenance["judged"]["true_errors"] == {
        "output": [],
        "layers": [graph.measured["true_mse"]],
        "layers and output": [],
    }
    again = replace(calibration, output_corrections=()).corrected(sampler, num_trajectories=2)
    assert again.corrections
    assert not again.output_corrections
    diverging.add(4)
    with pytest.raises(ValueError, match="every graph tried draws images of NaN"):
        calibration.graph(0.7, sampler=uncached_like(sampler))


def test_budgets_out_of_range_are_refused_by_each_kind(calibration):
    makes = (calibration, *calibration.parts, OfBoth(calibration))
    for make in makes:
        for budget in (30, "0.5x", "8.4x"):
            with pytest.raises(BudgetOutOfReach, match="is out of reach; the reachable range is"):
                make.graph(budget)


def test_where_both_do_not_reach_a_budget_one_kind_is_taken(calibration, sampler):
    both, solver = OfBoth(calibration), make_solver("ddim", calibration.schedule, 3)
    with pytest.raises(BudgetOutOfReach, match="no evaluations that run"):
        calibration._of_both(target_of(calibration, solver=solver), 0.75, None)
    found, alone = both.graph(0.75, solver=solver), calibration.graph(0.75, solver=solver)
    assert found.binding == replace(both.binding, timesteps=solver.timesteps)
    assert calibration.cost.of_graph(found) == calibration.cost.of_graph(alone)
    assert sum(map(len, found.reused)) == sum(map(len, alone.reused)) > 0
    images = [
        l2c.Sampler(sampler.backbone, graph=graph, cfg_scale=2.0).sample([0, 3], seed=0) for graph in (found, alone)
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_graph_of_one_kind_as_one_of_both_draws_the_same(calibration, sampler, kind):
    alone = calibration.parts[kind].graph(0.5)
    both = as_both(alone, sampler.backbone.layer_names)
    assert both.layers == OfBoth(calibration).binding.layers
    images = [
        l2c.Sampler(sampler.backbone, graph=graph, cfg_scale=2.0).sample([0, 3], seed=0) for graph in (both, alone)
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize("kind", ["layers", "output", "both"])
def test_true_errors_correct_each_kind(calibration, sampler, kind):
    makes = dict(zip(("layers", "output"), calibration.parts, strict=True), both=OfBoth(calibration))
    known = {"layers": calibration.corrections, "output": calibration.output_corrections}
    assert all((known["layers"], known["output"], calibration.both_corrections))
    assert all(calibration.parts[i].corrections == known[name] for i, name in enumerate(known))
    graph = makes[kind].graph(0.5)
    noise = torch.randn(16, *sampler.backbone.input_shape, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(16) % 5
    cached = l2c.Sampler(sampler.backbone, graph=graph, cfg_scale=2.0).sample(labels, noise=noise)
    true = float((cached - sampler.sample(labels, noise=noise)).square().mean())
    assert true / 5 < graph.measured["expected_mse"] < 5 * true


def test_graphs_of_both_are_corrected_by_their_own_true_errors(calibration):
    """Not by those of either kind: graphs of both are chosen among several, and err where responses do not add up."""
    known = OfBoth(calibration).graph(0.5).measured["expected_mse"]
    far = tuple({**one, "true": 1e4 * one["true"]} for one in calibration.both_corrections)
    worse = OfBoth(replace(calibration, both_corrections=far)).graph(0.5)
    assert worse.measured["expected_mse"] == pytest.approx(1e4 * known)
    assert replace(calibration, both_corrections=far).graph(0.5).layers != worse.layers
    old = OfBoth(replace(calibration, both_corrections=())).graph(0.5)  # of a file that does not hold them
    assert old.rows == worse.rows


def test_a_ladder_takes_both(calibration):
    ladder = calibration.ladder([0.8, 0.6, 0.4])
    assert [rung.layers for rung in ladder] == [calibration.graph(budget).layers for budget in (0.8, 0.6, 0.4)]
    mixed = l2c.Ladder([calibration.graph(0.8, whole_outputs=False), calibration.of_output().graph(0.5)])
    assert len({rung.layers for rung in mixed}) == 2


def test_both_are_saved_and_carried(calibration, tmp_path):
    calibration.save(tmp_path / "c.safetensors")
    again = l2c.Calibration.load(tmp_path / "c.safetensors")
    assert again.graph(0.4) == calibration.graph(0.4)
    assert again.output_corrections == calibration.output_corrections
    assert again.both_corrections == calibration.both_corrections
    carried = again.of_output().graph(0.5, num_steps=12)
    assert (carried.num_evaluations, carried.layers) == (12, ("output",))
    assert again.graph(0.5, num_steps=12).num_evaluations == 12


def test_policies_of_either_kind_take_the_file(calibration, sampler):
    whole = l2c.Sampler(l2c.WholeOutput(sampler.backbone), solver="ddim", num_evaluations=8, cfg_scale=2.0)
    assert make_graph("gram", PolicyContext.of(whole, calibration), budget=4).layers == ("output",)
    context = PolicyContext.of(sampler, calibration)
    assert make_graph("gram", context, budget=4).layers == sampler.backbone.layer_names


class Embedded(torch.nn.Module):
    """Nearly all of whose work lies outside its one layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.before = torch.nn.Linear(4, 4), torch.nn.Sequential(*(torch.nn.Linear(64, 64),) * 4)

    def forward(self, x, t):
        wide = self.before(torch.nn.functional.pad(x, (0, 60)) + t[:, None, None] / 1000)
        return x + self.layer(x) + wide[..., :4]


def test_layers_that_hold_next_to_nothing_leave_the_whole_output():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = l2c.wrap(Embedded(), layers=["layer"], timestep="t", input_shape=(3, 4))
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=8)
    calibration = l2c.Calibration.measure(sampler, true_errors=4, **SETTINGS)
    assert calibration.corrections == ()
    assert calibration.graph(0.5).layers == ("output",)
    with pytest.raises(ValueError, match="out of reach"):
        calibration.graph(0.5, whole_outputs=False)


@pytest.mark.parametrize(
    ("share", "directions", "read"), [(0.5, 256, 3), (0.4, 256, 3), (0.35, 256, 2), (0.5, 255, 2)]
)
def test_graphs_of_the_output_read_three_outputs_where_that_has_less_error(calibration, share, directions, read):
    part = calibration.of_output()
    many = {name: tensor.repeat(1, 1, 1, 64)[..., :directions] for name, tensor in part.tensors.items()}
    settings = {**part.settings, "num_trajectories": directions, "responses": {"num_probes": 1}}
    graph = replace(part, tensors=many, settings=settings).graph(share)
    assert max(len(weights) for row in graph.entry_weights for weights in row) == read
    layers = replace(calibration, tensors={**calibration.tensors, "responses": calibration.tensor("responses")})
    assert max(len(w) for row in layers.graph(share, whole_outputs=False).entry_weights for w in row) == 2


@pytest.mark.parametrize("change", [lambda t: t[:, :, :-1], lambda t: t[..., :-1], lambda t: t[:, :, ::2]])
def test_outputs_between_that_do_not_fit_are_refused(calibration, change):
    wrong = change(calibration.tensors["output_responses_between"])
    with pytest.raises(ValueError, match="output_responses_between and output_responses_ahead_between must both be"):
        replace(calibration, tensors={**calibration.tensors, "output_responses_between": wrong})
