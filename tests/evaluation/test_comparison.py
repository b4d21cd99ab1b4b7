"""Comparisons: what budgets mean to policies."""

import pytest
import torch

from l2c.evaluation.comparison import Comparison, fewer_evaluations
from l2c.evaluation.comparison_settings import ComparisonSettings
from l2c.policies.budget import evaluations_worth
from l2c.sampling.solver_settings import SolverSettings

METHODS = {"late_first": {"routed": "all"}, "few": {"policy": "random", "routed": "alternate"}}


@pytest.fixture
def comparison(make_dit, tmp_path):
    settings = ComparisonSettings(methods={k: dict(v) for k, v in METHODS.items()}, num_images=2, num_seeds=1)
    return Comparison(make_dit(), SolverSettings(name="ddim", num_evaluations=8), settings, tmp_path)


def test_a_budget_below_one_evaluation_is_no_share(comparison):
    cost = comparison.context.cost
    all_but_first = range(1, 8)
    least = comparison.context.least(all_but_first)
    worth = evaluations_worth(f"{8 / 0.9}x", 8)
    assert worth == pytest.approx(0.9)
    assert least > worth
    assert [draw.sampler() for draw in comparison.draws("late_first", worth)] == [None]
    (draw,) = comparison.draws("late_first", evaluations_worth("2x", 8))
    assert cost.evaluations_worth(draw.sampler().graph) == pytest.approx(4, abs=0.2)


def test_only_budgets_out_of_reach_leave_a_method_out(comparison):
    assert comparison.draws("few", 2.0)[0].sampler() is None
    comparison.asked.methods["few"]["routed"] = "out of reach"
    with pytest.raises(ValueError, match="routed must be"):
        comparison.draws("few", 2.0)[0].sampler()


def test_noise_of_a_stochastic_solver_follows_the_seed(make_dit, tmp_path):
    images = {}
    for seed in (1000, 1001):
        settings = ComparisonSettings(methods={}, num_images=2, seed=seed)
        solver = SolverSettings(name="ddpm", num_evaluations=4)
        comparison = Comparison(make_dit(), solver, settings, tmp_path)
        images[seed] = comparison.images(comparison.uncached)
        drawn = comparison.uncached.sample(comparison.labels, noise=comparison.noise, seed=seed)
        torch.testing.assert_close(images[seed], drawn)
    assert not torch.equal(*images.values())


def test_another_solver_keeps_the_guidance_and_leaves_the_options(make_dit, tmp_path):
    solver = SolverSettings(name="ddim", num_evaluations=8, cfg_scale=2.5, options={"eta": 0.5})
    comparison = Comparison(make_dit(), solver, ComparisonSettings(methods={}, num_images=2), tmp_path)
    other = comparison.uncached_with("dpm_solver_2m", 5)
    assert (other.solver.name, other.solver.num_evaluations, other.guidance.scale) == ("dpm_solver_2m", 5, 2.5)
    assert "eta" not in other.solver.options


@pytest.mark.parametrize(
    ("solver", "worth", "count"),
    [("ddim", 12.5, 12), ("ddim", 13.5, 13), ("ddim", 12.6, 13), ("dpm_solver_2s", 7, 6), ("dpm_solver_2s", 7.1, 8)],
)
def test_a_budget_between_two_numbers_takes_the_smaller_one(solver, worth, count):
    assert fewer_evaluations(solver, worth) == count
