"""What is measured, against finite changes made by hand."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from l2c.calibration.changes import measure_changes
from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.diffusion import Guidance
from l2c.graph.predictor import LINEAR
from l2c.policies.allocation import Allocation
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.policies.true_error import TrueError
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler, seeded_noise


@pytest.fixture
def sampler(backbone):
    solver = "ddim" if backbone.conventions.guidance == "dit" else "dpm_solver_2s"
    return Sampler(backbone, solver=solver, num_evaluations=6, cfg_scale=1.5)


@pytest.fixture
def start(sampler):
    return torch.tensor([1, 2]), seeded_noise(sampler.backbone.input_shape, 3, 2)


def test_changes_equal_those_of_outputs_kept_by_hand(sampler, start):
    labels, noise = start
    backbone, outputs = sampler.backbone, []
    denoiser = Denoiser(backbone, labels, Guidance(backbone.conventions.guidance, 1.5))
    everything = (True,) * backbone.num_layers

    def evaluate(x, t):
        both = torch.cat([x, x])
        outputs.append(backbone.forward_cached(both, torch.full((4,), t), denoiser.y, everything)[1])
        return denoiser(x, t)

    with torch.no_grad():
        sampler.solver.sample(evaluate, noise)
    change = measure_changes(sampler, labels, noise, max_age=2, batch_size=1)
    now, before = outputs[4][3], outputs[2][3]
    expected = ((now - before).abs().flatten(1).sum(1) / now.abs().flatten(1).sum(1)).mean()
    assert change["layer_change"][1, 4, 3] == pytest.approx(float(expected), rel=1e-4)
    assert change["layer_change"].shape == (2, 6, backbone.num_layers)
    assert change["block_change"].shape == (2, 6, backbone.num_layers // 2)
    assert (change["block_change"][0, 1:] > 0).all()


def test_responses_predict_the_error_of_a_small_change(make_dit):
    """All directions of image space, an entry that is moved by its change and against it."""
    small = make_dit(input_size=4, in_channels=1)
    sampler = Sampler(small, solver="ddim", num_evaluations=6, cfg_scale=1.5)
    labels, noise = torch.tensor([1, 2]), seeded_noise(small.input_shape, 3, 2)
    size = noise[0].numel()
    responses = measure_responses(sampler, labels, noise, num_probes=size, max_age=2, batch_size=1)
    context = PolicyContext.of(sampler)
    held = {}
    y = torch.cat([labels, torch.full_like(labels, sampler.backbone.conventions.null_label)])
    everything = (True,) * context.blank.num_layers

    def evaluate(x, t, by):
        e = len(held)
        x = torch.cat([x, x])
        cache, row = None, everything
        if e == 4:
            _, outputs = sampler.backbone.forward_cached(x, torch.full((4,), t), y, everything)
            moved = outputs[1] + by * (held[3] - outputs[1])
            cache, row = [None, moved, *[None] * (len(everything) - 2)], [i != 1 for i in range(len(everything))]
        output, outputs = sampler.backbone.forward_cached(x, torch.full((4,), t), y, row, cache)
        held[e] = outputs[1]
        return sampler.guidance.combine(*output.chunk(2))

    images = []
    for by in (1.0, -1.0):  # half of their difference has no second order, and is far above the rounding of 32 bits
        held.clear()
        with torch.no_grad():
            images.append(sampler.solver.sample(partial(evaluate, by=by), noise))
    error = float(((images[0] - images[1]) / 2).square().mean())
    assert float(responses[4, 1, 0].square().sum()) == pytest.approx(error, rel=0.05)


def test_allocation_is_the_brute_force_best_of_one_entry():
    generator = torch.Generator().manual_seed(0)
    responses = torch.randn(4, 2, 3, 10, generator=generator).numpy()
    allocation = Allocation(responses, (4.0, 3.0, 2.0, 1.0), (1, 1), reuses=("hold",))
    allocation.grow(1.0)
    errors = {(e, layer): float((responses[e, layer, 0] ** 2).sum()) for e in (1, 2, 3) for layer in (0, 1)}
    best = min(errors, key=errors.get)
    assert not allocation.rows[best]
    assert (~allocation.rows).sum() == 1
    assert allocation.predicted == pytest.approx(errors[best], rel=1e-5)


def test_allocation_takes_entries_that_cancel():
    responses = torch.zeros(3, 2, 2, 1)
    responses[1, 0, 0], responses[2, 1, 0] = 5.0, -5.0  # -5 is large, but 4 - 5 is small
    responses[1, 1, 0], responses[2, 0, 0] = 4.0, 4.0
    responses[2, :, 1] = 9.0
    allocation = Allocation(responses.numpy(), (3.0, 2.0, 1.0), (1, 1), reuses=("hold",), max_span=1)
    allocation.grow(2.0)
    assert allocation.predicted == pytest.approx(1.0)
    assert not allocation.rows[2, 1]


def test_allocation_forecasts_linear_reuse_from_two_ages():
    responses = torch.randn(4, 1, 3, 5, generator=torch.Generator().manual_seed(1)).numpy()
    allocation = Allocation(responses, (10.0, 8.0, 5.0, 4.0), (1,))
    assert allocation.entry(3, 0, (2, 1), LINEAR) == pytest.approx(
        (1 + 1 / 3) * responses[3, 0, 0] - 1 / 3 * responses[3, 0, 1], rel=1e-5
    )


def test_gram_and_best_run_from_measured_responses(sampler, start):
    labels, noise = start
    responses = measure_responses(sampler, labels, noise, num_probes=2, max_age=4)
    blank = PolicyContext.of(sampler).blank
    context = PolicyContext.of(sampler, Measurements({"responses": responses}, blank.binding))
    worst = make_graph("gram", context, budget=0.7, reuses=["hold"], max_span=6)
    best = make_graph("best", context, budget=0.7, num_trajectories=2, pool=2, steps=2, batch_size=2)
    assert context.cost.evaluations_worth(best) == pytest.approx(0.7 * 6, abs=0.1)
    labels = torch.arange(2)  # those that best judges graphs on
    reference = sampler.sample(labels, noise=seeded_noise(noise.shape[1:], 7, 2))

    def error(graph):
        images = Sampler(sampler.backbone, graph=graph).sample(labels, noise=seeded_noise(noise.shape[1:], 7, 2))
        return float((images - reference).square().mean())

    assert worst.cfg_scale == best.cfg_scale == 1.5
    assert error(best) <= error(worst) * 1.001


def test_best_may_take_fewer_evaluations(sampler, start):
    labels, noise = start
    responses = measure_responses(sampler, labels, noise, num_probes=2, max_age=4)
    settings = {"seed": 3, "num_trajectories": 2, "responses": {"num_probes": 2, "max_age": 4}}
    context = PolicyContext.of(
        sampler, Measurements({"responses": responses}, PolicyContext.of(sampler).blank.binding, settings)
    )
    options = {"budget": 3.5, "whole_outputs": False, "num_trajectories": 4, "pool": 4, "steps": 2, "batch_size": 2}
    longest = make_graph("best", context, **options)
    chosen = make_graph("best", context, num_evaluations=[5, 4, 3], **options)  # 3 are fewer than the budget has
    assert longest.num_evaluations == 6
    assert chosen.provenance["hyperparameters"]["reference_evaluations"] == 6
    assert context.cost.evaluations_worth(chosen) == pytest.approx(3.5, abs=0.1)
    labels, noise = torch.arange(4), seeded_noise(noise.shape[1:], 7, 4)  # those that best judges graphs on
    reference = sampler.sample(labels, noise=noise)
    errors = [
        (Sampler(sampler.backbone, graph=graph).sample(labels, noise=noise) - reference).square().mean()
        for graph in (chosen, longest)
    ]
    assert errors[0] <= errors[1] * 1.001
    with pytest.raises(ValueError, match=r"num_evaluations must be numbers in 2..6, those of the sampler, got 8"):
        make_graph("best", context, num_evaluations=[8], **options)


def test_solvers_that_add_noise_are_refused(make_dit):
    for solver, eta in (("ddpm", None), ("ddim", 0.5)):
        sampler = Sampler(make_dit(), solver=solver, num_evaluations=4, eta=eta)
        noise = seeded_noise(sampler.backbone.input_shape, 0, 2)
        with pytest.raises(ValueError, match="adds noise at its steps; take ddim with eta 0"):
            measure_responses(sampler, torch.tensor([1, 2]), noise)


def test_fitted_slopes_make_the_change_of_an_entry_smallest():
    responses = torch.randn(4, 1, 3, 5, generator=torch.Generator().manual_seed(1)).numpy()
    allocation = Allocation(responses, (10.0, 8.0, 5.0, 4.0), (1,), reuses=("fitted",))
    held, older = responses[3, 0, 0], responses[3, 0, 1]
    slope = -allocation.weights(3, 0, (2, 1), "fitted")[1]
    changes = [((1 + k) * held - k * older) for k in (slope - 0.01, slope, slope + 0.01)]
    norms = [float(change @ change) for change in changes]
    assert norms[1] < min(norms[0], norms[2])
    assert allocation.entry(3, 0, (2, 1), "fitted") == pytest.approx(changes[1], rel=1e-5)
    assert allocation.entry(3, 0, (2,), "fitted") == pytest.approx(held)


def test_graph_carries_the_slopes_that_the_allocation_fitted(sampler, start):
    labels, noise = start
    responses = measure_responses(sampler, labels, noise, num_probes=2, max_age=4)
    context = PolicyContext.of(
        sampler, Measurements({"responses": responses}, PolicyContext.of(sampler).blank.binding)
    )
    graph = make_graph("gram", context, budget=0.6)
    entries = [(e, layer) for e, row in enumerate(graph.rows) for layer, fresh in enumerate(row) if not fresh]
    assert set(graph.reuse) == {"fitted"}
    two = [(e, i) for e, i in entries if sum(graph.rows[before][i] for before in range(e)) > 1]
    assert two
    assert all(-1 <= graph.entry_slopes[e][i] <= 4 for e, i in entries)
    assert any(graph.entry_slopes[e][i] for e, i in two)


def test_judge_estimates_the_mean_of_its_pool(sampler, make_graph):
    graph = make_graph(sampler.backbone, cfg_scale=1.5)
    whole, part = TrueError.of(sampler, 24, 3, pool=0), TrueError.of(sampler, 8, 3, pool=24)
    assert float(part.weights.sum()) == pytest.approx(1.0)
    assert len(part.noise) == 8
    largest = whole.target.abs().flatten(1).amax(1).topk(2).values
    assert torch.allclose(part.target[:2].abs().flatten(1).amax(1), largest, rtol=1e-4)
    images = Sampler(sampler.backbone, graph=graph).sample(whole.labels, noise=whole.noise)
    assert whole.error(graph) == pytest.approx(float((images - whole.target).square().mean()), rel=1e-4)
    assert TrueError.of(sampler, 8, 3, pool=24).target is part.target


def test_what_is_kept_of_a_sampler_does_not_keep_it(make_dit, make_graph):
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=4)
    graph, alive = make_graph(sampler.backbone, solver="ddim", num_evaluations=4), weakref.ref(sampler.backbone)
    assert TrueError.of(sampler, 2, 3, pool=0).error(graph) == TrueError.of(sampler, 2, 3, pool=0).error(graph) > 0
    del sampler
    gc.collect()
    assert alive() is None


def test_an_age_that_is_not_known_is_never_used():
    responses = torch.randn(8, 3, 4, 6, generator=torch.Generator().manual_seed(2)).numpy()
    responses[3:6, :, 1:] = np.nan  # only the last output's age is known there
    allocation = Allocation(responses, range(8, 0, -1), (1, 1, 1), max_span=3, reuses=("fitted",))
    allocation.grow(20.0)
    assert np.isfinite(allocation.predicted)
    assert (~allocation.rows).any()
    for e in range(3, 6):
        assert all(allocation.rows[e - 1, layer] for layer in range(3) if not allocation.rows[e, layer])
        assert not any(allocation.stand_ins()["slopes"][e])  # the output before the last is of unknown age: held


@pytest.mark.parametrize("known", [5, 2], ids=["all ages known", "two ages known in places"])
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("reuses", [("fitted",), ("fitted", "linear", "hold")], ids=["one reuse", "three"])
def test_what_flips_would_add_stays_true_while_entries_are_flipped(reuses, order, known):
    responses = torch.randn(12, 3, 5, 6, generator=torch.Generator().manual_seed(3)).numpy()
    responses[4:7, :, known:] = np.nan
    allocation = Allocation(responses, range(12, 0, -1), (1, 2, 1), max_span=3, reuses=reuses, order=order)
    allocation.grow(20.0)
    allocation.shrink(14.0)
    allocation.choose_reuse()
    assert "fitted" in allocation.reuse  # three begin with hold: others were chosen, and flips worked out anew
    flips, possible = allocation._flips.copy(), allocation._possible.copy()
    columns = allocation.columns.copy()
    allocation.set(allocation.rows, allocation.reuse)
    assert np.array_equal(possible, allocation._possible)
    assert np.allclose(flips[possible], allocation._flips[possible], atol=1e-5)
    assert np.allclose(columns, allocation.columns, atol=1e-5)
