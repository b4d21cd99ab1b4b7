"""Tournaments: what budgets mean to policies."""

import pytest
import torch

from l2c.evaluation.tournament import Tournament
from l2c.evaluation.tournament_settings import TournamentSettings
from l2c.policies.budget import evaluations_worth
from l2c.sampling.solver_settings import SolverSettings

METHODS = {"late_first": {"routed": "all"}, "few": {"policy": "random", "routed": "alternate"}}


@pytest.fixture
def tournament(make_dit, tmp_path):
    settings = TournamentSettings(methods={k: dict(v) for k, v in METHODS.items()}, num_images=2, num_seeds=1)
    return Tournament(make_dit(), SolverSettings(name="ddim", num_evaluations=8), settings, tmp_path)


def test_a_budget_below_one_evaluation_is_no_share(tournament):
    cost = tournament.context.cost
    all_but_first = range(1, 8)
    least = tournament.context.least(all_but_first)
    worth = evaluations_worth(f"{8 / 0.9}x", 8)
    assert worth == pytest.approx(0.9)
    assert least > worth
    assert [draw.sampler() for draw in tournament.draws("late_first", worth)] == [None]
    (draw,) = tournament.draws("late_first", evaluations_worth("2x", 8))
    assert cost.evaluations_worth(draw.sampler().graph) == pytest.approx(4, abs=0.2)


def test_only_budgets_out_of_reach_leave_a_method_out(tournament):
    assert tournament.draws("few", 2.0)[0].sampler() is None
    tournament.asked.methods["few"]["routed"] = "out of reach"
    with pytest.raises(ValueError, match="routed must be"):
        tournament.draws("few", 2.0)[0].sampler()


def test_noise_of_a_stochastic_solver_follows_the_seed(make_dit, tmp_path):
    images = {}
    for seed in (1000, 1001):
        settings = TournamentSettings(methods={}, num_images=2, seed=seed)
        solver = SolverSettings(name="ddpm", num_evaluations=4)
        tournament = Tournament(make_dit(), solver, settings, tmp_path)
        images[seed] = tournament.images(tournament.uncached)
        drawn = tournament.uncached.sample(tournament.labels, noise=tournament.noise, seed=seed)
        torch.testing.assert_close(images[seed], drawn)
    assert not torch.equal(*images.values())


def test_another_solver_keeps_the_guidance_and_leaves_the_options(make_dit, tmp_path):
    solver = SolverSettings(name="ddim", num_evaluations=8, cfg_scale=2.5, options={"eta": 0.5})
    tournament = Tournament(make_dit(), solver, TournamentSettings(methods={}, num_images=2), tmp_path)
    other = tournament.other("dpm_solver_2m", 5)
    assert (other.solver.name, other.solver.num_evaluations, other.guidance.scale) == ("dpm_solver_2m", 5, 2.5)
    assert "eta" not in other.solver.options
