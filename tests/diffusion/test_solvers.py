"""Solvers on data distributions whose answer is known in closed form.

Data N(0, s^2): the optimal eps(x, t) is sigma x / (alpha^2 s^2 + sigma^2) and the probability-flow ODE scales
x by sqrt(alpha^2 s^2 + sigma^2). Data at one point p: eps(x, t) = (x - alpha p) / sigma, every state is exact.
"""

from __future__ import annotations

import math

import pytest
import torch

from l2c.diffusion import DIFFUSION_SOLVERS, NoiseSchedule, make_solver

LINEAR, SCALED = NoiseSchedule("linear"), NoiseSchedule("scaled_linear", 1)
DETERMINISTIC = ["ddim", "dpm_solver_2s", "dpm_solver_2m"]
SPREAD = 0.5


def variance(schedule, index):
    alpha, sigma = schedule.marginal(index)
    return alpha**2 * SPREAD**2 + sigma**2


def gaussian_model(schedule):
    def model(x, t):
        index = t - schedule.first_timestep
        return schedule.marginal(index)[1] * x / variance(schedule, index)

    return model


def point_model(schedule, point):
    def model(x, t):
        alpha, sigma = schedule.marginal(t - schedule.first_timestep)
        return (x - alpha * point) / sigma

    return model


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drive(trajectory, model):
    """Answer a trajectory's evaluations, return them and the final x."""
    requests = [next(trajectory)]
    while True:
        try:
            requests.append(trajectory.send(model(requests[-1].x, requests[-1].t)))
        except StopIteration as stop:
            return requests, stop.value


def relative_error(name, schedule, num_evaluations):
    """Distance of the solver's scaling of x from that of the ODE."""
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    got = make_solver(name, schedule, num_evaluations).sample(gaussian_model(schedule), x).item()
    end = SPREAD**2 if name == "ddim" else variance(schedule, 0)  # DDIM goes on to alpha = 1
    return abs(got / math.sqrt(end / variance(schedule, 999)) - 1)


@pytest.mark.parametrize("schedule", [LINEAR, SCALED], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("name", "counts", "finest", "order"),
    [
        ("ddim", (80, 320), 0.012, (0.8, 1.2)),
        ("dpm_solver_2s", (80, 320), 0.002, (1.5, 2.2)),
        ("dpm_solver_2m", (160, 640), 0.001, (1.5, 2.2)),
    ],
)
def test_gaussian_data_converges_at_the_solvers_order(schedule, name, counts, finest, order):
    coarse, fine = (relative_error(name, schedule, count) for count in counts)
    assert fine < finest
    assert order[0] < math.log(coarse / fine, 4) < order[1]


@pytest.mark.parametrize("schedule", [LINEAR, SCALED], ids=lambda s: s.name)
@pytest.mark.parametrize("num_evaluations", [160, 320])
def test_second_order_beats_first(schedule, num_evaluations):
    errors = {name: relative_error(name, schedule, num_evaluations) for name in DETERMINISTIC}
    assert errors["dpm_solver_2s"] < errors["ddim"] / 2
    assert errors["dpm_solver_2m"] < errors["ddim"] / 2


@pytest.mark.parametrize("schedule", [LINEAR, SCALED], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver_2s", "dpm_solver_2m"])
@pytest.mark.parametrize("num_evaluations", [5, 8, 20])
def test_point_data_is_exact(schedule, name, num_evaluations):
    point, x = noise(2, 3, 4, 4, seed=1), noise(2, 3, 4, 4)
    got = make_solver(name, schedule, num_evaluations).sample(
        point_model(schedule, point), x, generator=torch.Generator().manual_seed(0)
    )
    expected = point
    if name.startswith("dpm"):  # these end at the least noisy training step, on the line from x to the point
        (alpha_T, sigma_T), (alpha, sigma) = schedule.marginal(999), schedule.marginal(0)
        expected = alpha * point + sigma * (x - alpha_T * point) / sigma_T
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DIFFUSION_SOLVERS)
@pytest.mark.parametrize("num_evaluations", [2, 5, 20])
def test_announced_evaluations_are_those_asked_for(name, num_evaluations):
    solver = make_solver(name, SCALED, num_evaluations)
    requests, final = drive(solver.trajectory(noise(1, 1, 2, 2)), lambda x, t: 0.1 * x)
    assert [(request.index, request.t) for request in requests] == list(enumerate(solver.timesteps))
    assert final.shape == (1, 1, 2, 2)
    assert solver.num_evaluations == num_evaluations
    assert solver.timesteps[0] == 1000
    assert all(a > b for a, b in zip(solver.timesteps, solver.timesteps[1:], strict=False))
    assert solver.timesteps == tuple(index + 1 for index in solver.indices)


@pytest.mark.parametrize("name", DIFFUSION_SOLVERS)
@pytest.mark.parametrize("num_evaluations", [2, 5, 20])
def test_steps_partition_the_evaluations(name, num_evaluations):
    solver = make_solver(name, LINEAR, num_evaluations)
    assert [e for step in solver.steps for e in step] == list(range(num_evaluations))
    for k, step in enumerate(solver.steps):
        assert all(solver.step_of(e) == k for e in step)
    assert {len(step) for step in solver.steps[:-1]} <= {2 if name == "dpm_solver_2s" else 1}


def test_2s_steps_are_uniform_in_t_and_halved_in_log_snr():
    solver = make_solver("dpm_solver_2s", SCALED, 20)
    for k, (first, second) in enumerate(solver.steps):
        start, end = 999 - 99.9 * k, 999 - 99.9 * (k + 1)
        assert solver.indices[first] == pytest.approx(start)
        middle = (SCALED.half_log_snr(start) + SCALED.half_log_snr(max(end, 0))) / 2
        assert SCALED.half_log_snr(solver.indices[second]) == pytest.approx(middle, abs=1e-6)


def test_odd_number_of_2s_ends_with_a_first_order_step():
    solver = make_solver("dpm_solver_2s", LINEAR, 5)
    assert solver.steps == ((0, 1), (2, 3), (4,))
    x = noise(1, 1, 2, 2)
    states = []
    got = solver.sample(lambda x, t: states.append(x) or gaussian_model(LINEAR)(x, t), x)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = LINEAR.marginal(333), LINEAR.marginal(0)
    eps = gaussian_model(LINEAR)(states[4], 333)
    data = (states[4] - sigma_s * eps) / alpha_s
    torch.testing.assert_close(got, alpha_t * data + sigma_t * eps)


@pytest.mark.parametrize("num_evaluations", [2, 4, 14, 15, 20])
def test_2m_by_hand(num_evaluations):
    """Second order but at the first step and at the last one, which is far longer than the others."""
    outputs = [noise(1, 1, 2, 2, seed=e + 1) for e in range(num_evaluations)]
    x, given = noise(1, 1, 2, 2), iter(outputs)
    got = make_solver("dpm_solver_2m", LINEAR, num_evaluations).sample(lambda x, t: next(given), x)
    times = [999 * (1 - k / num_evaluations) for k in range(num_evaluations + 1)]
    before = None
    for e, eps in enumerate(outputs):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = LINEAR.marginal(times[e]), LINEAR.marginal(times[e + 1])
        h = math.log(alpha_t / sigma_t) - math.log(alpha_s / sigma_s)
        data = slope = (x - sigma_s * eps) / alpha_s
        if before is not None and e < num_evaluations - 1:
            slope = data + (data - before[0]) * h / (2 * before[1])
        x = sigma_t / sigma_s * x + alpha_t * (1 - math.exp(-h)) * slope
        before = data, h
    torch.testing.assert_close(got, x, rtol=1e-7, atol=1e-7)


def test_ddim_of_two_steps_by_hand():
    x, outputs = noise(2, 1, 2, 2), [noise(2, 1, 2, 2, seed=1), noise(2, 1, 2, 2, seed=2)]
    given = iter(outputs)
    got = make_solver("ddim", LINEAR, 2).sample(lambda x, t: next(given), x)
    for eps, (now, after) in zip(outputs, [(999, 0), (0, None)], strict=True):
        alpha, sigma = LINEAR.marginal(now)
        data = (x - sigma * eps) / alpha
        alpha, sigma = (1, 0) if after is None else LINEAR.marginal(after)
        x = alpha * data + sigma * eps
    torch.testing.assert_close(got, x)


def test_ddim_with_full_noise_is_ddpm_without_learned_variance():
    runs = [
        make_solver(name, LINEAR, 10, **options).sample(
            gaussian_model(LINEAR), noise(2, 1, 4, 4), generator=torch.Generator().manual_seed(3)
        )
        for name, options in (("ddim", {"eta": 1.0}), ("ddpm", {}))
    ]
    torch.testing.assert_close(*runs)


def test_full_noise_keeps_the_spread_of_the_data():
    """10,000 one-pixel images come out with spread 0.5, and are other ones than without noise."""
    x, generator = noise(10_000, 1, 1, 1), torch.Generator().manual_seed(1)
    stochastic = make_solver("ddim", LINEAR, 1000, eta=1.0).sample(gaussian_model(LINEAR), x, generator=generator)
    straight = make_solver("ddim", LINEAR, 1000, eta=0.0).sample(gaussian_model(LINEAR), x)
    assert stochastic.std().item() == pytest.approx(SPREAD, rel=0.05)
    correlation = torch.corrcoef(torch.stack([stochastic.flatten(), straight.flatten()]))[0, 1]
    assert correlation < 0.2


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_learned_variance_runs_from_posterior_to_beta(end):
    """arXiv 2102.09672, eq. 15, at the first of two steps: v = -1 is the posterior's variance, 1 is beta."""
    solver = make_solver("ddpm", LINEAR, 2)
    x, eps = torch.zeros(5000, 1, 1, 1, dtype=torch.float64), torch.zeros(5000, 1, 1, 1, dtype=torch.float64)
    trajectory = solver.trajectory(x, generator=torch.Generator().manual_seed(0))
    next(trajectory)
    after_one = trajectory.send(torch.cat([eps, eps + end], dim=1)).x
    abar, abar_after = LINEAR.alphas_cumprod[999], LINEAR.alphas_cumprod[0]
    beta = 1 - abar / abar_after
    wanted = beta if end == 1 else beta * (1 - abar_after) / (1 - abar)
    assert after_one.var().item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_variance_channels_do_not_enter_the_mean(name):
    """The output may hold a variance beside the noise; solvers without a use for it leave it alone."""
    solver, model = make_solver(name, LINEAR, 6), gaussian_model(LINEAR)
    x = noise(1, 2, 2, 2)
    with_variance = solver.sample(lambda x, t: torch.cat([model(x, t), noise(*x.shape, seed=9)], dim=1), x)
    assert torch.equal(with_variance, solver.sample(model, x))


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddim", {"eta": 0.7})])
def test_generator_decides_the_noise(name, options):
    solver = make_solver(name, LINEAR, 5, **options)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return solver.sample(gaussian_model(LINEAR), noise(1, 1, 4, 4), generator=generator)

    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), run(1))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_solvers_draw_nothing(name):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    make_solver(name, LINEAR, 5).sample(gaussian_model(LINEAR), noise(1, 1, 4, 4), generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_2s"])
def test_a_trajectory_can_begin_in_the_middle(name):
    solver, model = make_solver(name, LINEAR, 8), gaussian_model(LINEAR)
    whole, final = drive(solver.trajectory(noise(1, 1, 2, 2)), model)
    assert torch.equal(solver.sample(model, noise(1, 1, 2, 2)), final)
    first = solver.steps[2][0]
    rest, same_final = drive(solver.trajectory(whole[first].x, first_step=2), model)
    assert [request.index for request in rest] == list(range(first, 8))
    assert torch.equal(same_final, final)


def weights_in_data(num_evaluations):
    """The weight of each prediction of the data in the image of 2M, for given predictions."""
    weights = []
    for chosen in range(num_evaluations):
        solver = make_solver("dpm_solver_2m", LINEAR, num_evaluations)
        solver.predicted_data = lambda output, x, e, chosen=chosen: torch.full_like(x, float(e == chosen))
        weights.append(solver.sample(lambda x, t: x, torch.zeros(1, 1, 1, 1, dtype=torch.float64)).item())
    return weights


@pytest.mark.parametrize("num_evaluations", [13, 15, 20, 50])
def test_the_last_step_of_2m_goes_on_from_the_last_prediction(num_evaluations):
    """A last step of second order, 3 to 5 times as long as the one before, would weigh the last but one below 0."""
    last_but_one, last = weights_in_data(num_evaluations)[-2:]
    assert last_but_one > -0.05
    assert 0.5 < last < 1.05


@pytest.mark.parametrize("num_evaluations", [10, 14, 15, 20, 40])
def test_2m_gains_by_more_evaluations(num_evaluations):
    """Two evaluations more lower the error, beyond 14 too."""
    fewer = relative_error("dpm_solver_2m", LINEAR, num_evaluations - 2)
    assert relative_error("dpm_solver_2m", LINEAR, num_evaluations) < fewer


def test_on_evaluation_is_told_each_one():
    seen = []
    make_solver("dpm_solver_2s", LINEAR, 6).sample(
        gaussian_model(LINEAR), noise(1, 1, 2, 2), on_evaluation=seen.append
    )
    assert seen == list(range(6))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"unknown solver 'dpm_solver_3s'; known are .*, dpm_solver_2s, "):
        make_solver("dpm_solver_3s", LINEAR, 20)
    with pytest.raises(ValueError, match=r"eta must be a finite number in \[0, 1\], got 1.5"):
        make_solver("ddim", LINEAR, 20, eta=1.5)
    with pytest.raises(ValueError, match="solver ddpm has no option 'eta'; its options are none"):
        make_solver("ddpm", LINEAR, 20, eta=0.0)
    for name in ("dpm_solver_2s", "dpm_solver_2m"):
        with pytest.raises(ValueError, match=f"num_evaluations of {name} must be .*, got 1"):
            make_solver(name, LINEAR, 1)
    with pytest.raises(ValueError, match=r"2\.\.1000 for this solver, got 1"):
        make_solver("ddim", LINEAR, 1)


def test_options_are_announced():
    assert make_solver("ddim", LINEAR, 5, eta=0.5).options == {"eta": 0.5}
    assert make_solver("dpm_solver_2s", LINEAR, 5).options == {}
