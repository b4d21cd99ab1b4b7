"""Noise schedules against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from l2c.diffusion import NoiseSchedule
from l2c.diffusion.schedule import named_or_betas

OWN = tuple(0.5 * (step + 1) / 1000 for step in range(1000))
SCHEDULES = [
    NoiseSchedule("linear"),
    NoiseSchedule("scaled_linear", 1),
    NoiseSchedule("cosine"),
    NoiseSchedule("own", given=OWN),
]
INDICES = [0, 0.25, 1, 17.5, 499, 500.9, 998.99, 999]


def test_linear_betas():
    betas = NoiseSchedule("linear").betas
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02], rtol=1e-12)
    np.testing.assert_allclose(np.diff(betas), (0.02 - 1e-4) / 999, rtol=1e-9)
    shorter = NoiseSchedule("linear", num_steps=250).betas
    np.testing.assert_allclose(shorter[[0, -1]], [4e-4, 0.08], rtol=1e-12)


def test_scaled_linear_betas():
    betas = NoiseSchedule("scaled_linear").betas
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.sqrt(betas)), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-9)


def test_cosine_betas_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2").betas
    np.testing.assert_allclose(NoiseSchedule("cosine").betas, theirs.numpy(), rtol=2e-5)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1], "at least 2 numbers between 0 and 1, .* got 1 of them"),
        ([0.1, 1.0], "got 1; give 0.9999 where the last one is 1"),
        ([0.1, float("nan")], "got nan"),
        (["a", 0.1], "must be a list of numbers"),
        (7, "must be a list"),
        ("sigmoid", "unknown noise schedule 'sigmoid'"),
    ],
)
def test_wrong_betas_are_one_sentence(betas, message):
    with pytest.raises(ValueError, match=message):
        named_or_betas(betas)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_signal_is_the_product_of_what_each_step_leaves(schedule):
    left = 1.0
    for step in range(schedule.num_steps):
        left *= 1 - schedule.betas[step]
        if step in (0, 1, 500, 999):
            np.testing.assert_allclose(schedule.alphas_cumprod[step], left, rtol=1e-10)
            np.testing.assert_allclose(schedule.marginal(step)[0], math.sqrt(left), rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("index", INDICES)
def test_marginals_preserve_the_variance(schedule, index):
    alpha, sigma = schedule.marginal(index)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)
    assert schedule.half_log_snr(index) == pytest.approx(math.log(alpha / sigma), abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("index", INDICES)
def test_index_of_inverts_half_log_snr(schedule, index):
    assert schedule.index_of(schedule.half_log_snr(index)) == pytest.approx(index, abs=1e-6)


def test_log_alpha_is_linear_between_steps():
    schedule = NoiseSchedule("linear")
    ends = schedule.log_alpha(400), schedule.log_alpha(401)
    assert schedule.log_alpha(400.25) == pytest.approx(0.75 * ends[0] + 0.25 * ends[1], abs=1e-14)


def test_network_counts_from_first_timestep():
    assert NoiseSchedule("linear").timestep(999) == 999
    assert NoiseSchedule("scaled_linear", 1).timestep(950.5) == 951.5


def test_respacing_to_20_is_the_published_one():
    expected = (999, 946, 894, 841, 789, 736, 684, 631, 578, 526)
    expected += (473, 421, 368, 315, 263, 210, 158, 105, 53, 0)
    assert NoiseSchedule().respace(20) == expected


@pytest.mark.parametrize("num_evaluations", [2, 3, 10, 19, 21, 50, 250, 1000])
def test_respacing_accumulates_the_stride(num_evaluations):
    """The loop of the DiT code, which adds up the fractional stride."""
    steps, position = [], 0.0
    for _ in range(num_evaluations):
        steps.append(round(position))
        position += 999 / (num_evaluations - 1)
    respaced = NoiseSchedule().respace(num_evaluations)
    assert respaced == tuple(reversed(steps))
    assert (respaced[0], respaced[-1], len(set(respaced))) == (999, 0, num_evaluations)


@pytest.mark.parametrize("num_evaluations", [0, 1, 1001])
def test_respacing_refuses_what_it_cannot_spread(num_evaluations):
    with pytest.raises(ValueError, match=rf"must lie in 2\.\.1000 for this solver, got {num_evaluations}"):
        NoiseSchedule().respace(num_evaluations)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="unknown noise schedule 'sigmoid'; known are linear, scaled_linear"):
        NoiseSchedule("sigmoid")
