"""Kinds of prediction: targets and maps undo each other, agree with diffusers, and commute with guidance."""

from __future__ import annotations

import pytest
import torch

from l2c.diffusion import DIFFUSION_SOLVERS, Guidance, NoiseSchedule, make_solver
from l2c.diffusion.prediction import PREDICTIONS, data_of, min_snr_weight, noise_of, target, velocity_of

LEVELS = [(0.8, 0.6), (0.3, 0.7), (0.999, 0.0447)]  # the second one is not variance preserving


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pictures():
    return normal(2, 3, 4, 4, seed=0), normal(2, 3, 4, 4, seed=1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_maps_undo_the_target(prediction, alpha, sigma, pictures):
    x_0, eps = pictures
    x, output = alpha * x_0 + sigma * eps, target(prediction, x_0, eps, alpha, sigma)
    for map_, wanted in ((noise_of, eps), (data_of, x_0), (velocity_of, eps - x_0)):
        torch.testing.assert_close(map_(prediction, output, x, alpha, sigma), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("prediction", "theirs"), [("noise", "epsilon"), ("v", "v_prediction"), ("data", "sample")])
def test_a_step_from_both_is_that_of_diffusers(prediction, theirs, pictures):
    """One step of DDIM from signal variance 0.5 to 0.75."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(prediction_type=theirs, clip_sample=False)
    scheduler.set_timesteps(10)  # a step goes from t to t - 100
    scheduler.alphas_cumprod = torch.full((1000,), 0.5, dtype=torch.float64)
    scheduler.alphas_cumprod[400] = 0.75
    output, x = pictures
    maps = [map_(prediction, output, x, 0.5**0.5, 0.5**0.5) for map_ in (data_of, noise_of)]
    wanted = scheduler.step(output, 500, x).prev_sample
    torch.testing.assert_close(0.75**0.5 * maps[0] + 0.5 * maps[1], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DIFFUSION_SOLVERS)
def test_a_network_of_v_leads_where_its_noise_does(name, pictures):
    schedule = NoiseSchedule()

    def eps_model(x, t):
        return torch.tanh(x) * (0.5 + t / 2000)

    def v_model(x, t):
        alpha, sigma = schedule.marginal(t)
        eps = eps_model(x, t)
        return alpha * eps - sigma * (x - sigma * eps) / alpha

    ends = [
        make_solver(name, each, 8).sample(model, pictures[1], generator=torch.Generator().manual_seed(0))
        for each, model in ((schedule, eps_model), (NoiseSchedule(prediction="v"), v_model))
    ]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("mode", ["dit", "uvit", "cfg"])
def test_maps_commute_with_guidance(prediction, mode, pictures):
    alpha, sigma = LEVELS[0]
    x, guidance = normal(2, 3, 4, 4, seed=2), Guidance(mode, 3.0)
    before = [noise_of(prediction, output, x, alpha, sigma) for output in pictures]
    after = noise_of(prediction, guidance.combine(*pictures), x, alpha, sigma)
    torch.testing.assert_close(guidance.combine(*before), after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_the_data_alike(prediction, pictures):
    x_0, wrong = pictures
    alpha, sigma = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1) for values in ((0.8, 0.3), (0.6, 0.7))
    )
    eps = normal(2, 3, 4, 4, seed=2)
    x = alpha * x_0 + sigma * eps
    outputs = [target(prediction, data, (x - alpha * data) / sigma, alpha, sigma) for data in (x_0, wrong)]
    weights = min_snr_weight(prediction, alpha, sigma, 1.0)
    snr = (alpha / sigma) ** 2
    got = weights * (outputs[0] - outputs[1]).square()
    torch.testing.assert_close(got, snr.clamp(max=1.0) * (x_0 - wrong).square(), rtol=1e-9, atol=0)
    if prediction == "noise":
        torch.testing.assert_close(weights, snr.clamp(max=1.0) / snr)
