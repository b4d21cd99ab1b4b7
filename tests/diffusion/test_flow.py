"""Solvers of flows against diffusers' schedulers and against answers in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from l2c.diffusion import FLOW_SOLVERS, FlowSchedule, NoiseSchedule, make_solver
from l2c.io.seeds import Stream

FLOW = FlowSchedule()
SPREAD = 0.5


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def velocity(x, t):
    """Some network: not linear in x, and different at each t."""
    return torch.tanh(x) * (0.3 + t / 1000) - 0.2 * x.flip(-1)


def gaussian_velocity(x, t):
    """Return the best velocity for data N(0, SPREAD^2): E[eps - x_0 | x]."""
    s = t / 1000
    return (s - (1 - s) * SPREAD**2) / ((1 - s) ** 2 * SPREAD**2 + s**2) * x


def scheduler_of(name, shift, num_evaluations):
    diffusers = pytest.importorskip("diffusers")
    if name == "flow_euler":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_evaluations, num_evaluations))
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, solver_order=2
        )
        scheduler.set_timesteps(num_evaluations)
    return scheduler


@pytest.mark.parametrize("name", FLOW_SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_evaluations", [2, 7, 20])
def test_steps_are_those_of_diffusers(name, shift, num_evaluations):
    scheduler, solver = (
        scheduler_of(name, shift, num_evaluations),
        make_solver(name, FLOW, num_evaluations, shift=shift),
    )
    # diffusers keeps the times of DPM-Solver as integers, and its levels of noise in 32 bits.
    levels = torch.tensor(solver.timesteps, dtype=torch.float64) / 1000
    torch.testing.assert_close(levels, scheduler.sigmas[:-1].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(levels * 1000, scheduler.timesteps.double(), rtol=0, atol=1.0)

    x = noise(2, 3, 4, 4)
    got = solver.sample(velocity, x)
    wanted = x
    for t, exact in zip(scheduler.timesteps, solver.timesteps, strict=True):
        wanted = scheduler.step(velocity(wanted, exact), t, wanted).prev_sample
    torch.testing.assert_close(got, wanted.to(got), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", FLOW_SOLVERS)
def test_announced_evaluations_are_those_asked_for(name):
    solver = make_solver(name, FLOW, 5, shift=3.0)
    asked = []
    solver.sample(lambda x, t: asked.append(t) or 0.1 * x, noise(1, 1, 2, 2))
    assert tuple(asked) == solver.timesteps == solver.indices
    assert all(a > b for a, b in itertools.pairwise(asked))
    assert solver.steps == ((0,), (1,), (2,), (3,), (4,))
    assert solver.options == {"shift": 3.0}


@pytest.mark.parametrize(("name", "order"), [("flow_euler", (0.8, 1.2)), ("flow_dpm_2m", (1.5, 2.3))])
def test_gaussian_data_converges_at_the_solvers_order(name, order):
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def error(num_evaluations):
        solver = make_solver(name, FLOW, num_evaluations)
        first = solver.timesteps[0] / 1000  # the ODE scales x by the standard deviation of x_s
        exact = SPREAD / math.hypot((1 - first) * SPREAD, first)
        return abs(solver.sample(gaussian_velocity, x).item() / exact - 1)

    assert error(320) < 0.01
    assert order[0] < math.log(error(80) / error(320), 4) < order[1]


@pytest.mark.parametrize("name", FLOW_SOLVERS)
@pytest.mark.parametrize("num_evaluations", [2, 5, 20])
def test_one_picture_is_reached_exactly(name, num_evaluations):
    point, x = noise(2, 3, 4, 4, seed=1), noise(2, 3, 4, 4)
    got = make_solver(name, FLOW, num_evaluations, shift=2.0).sample(lambda x, t: (x - point) / (t / 1000), x)
    torch.testing.assert_close(got, point, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FLOW_SOLVERS)
@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_what_the_network_predicts_makes_no_difference(name, prediction):
    """The same flow, said as noise or as v, which are undefined only at the ends."""
    x = noise(2, 3, 4, 4)

    def said_otherwise(x, t):
        s, u = t / 1000, velocity(x, t)
        eps, x_0 = x + (1 - s) * u, x - s * u
        return eps if prediction == "noise" else (1 - s) * eps - s * x_0

    # A network that predicts noise says nothing of the data at s = 1, where Euler begins.
    first = 1 if (name, prediction) == ("flow_euler", "noise") else 0
    ends = []
    for schedule, model in ((FLOW, velocity), (FlowSchedule(prediction=prediction), said_otherwise)):
        trajectory = make_solver(name, schedule, 6).trajectory(x, first_step=first)
        request = next(trajectory)
        while True:
            try:
                request = trajectory.send(model(request.x, request.t))
            except StopIteration as stop:
                ends.append(stop.value)
                break
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)


def test_half_log_snr_and_times_belong_together():
    assert FLOW.marginal(250) == (0.75, 0.25)
    assert FLOW.half_log_snr(250) == pytest.approx(math.log(3))
    assert (FLOW.half_log_snr(0), FLOW.half_log_snr(1000)) == (math.inf, -math.inf)
    assert FLOW.timestep(250) == 250


def test_training_times_reach_both_ends():
    t, alpha, sigma = FLOW.draw(20_000, Stream("times", 0))
    torch.testing.assert_close(t, 1000 * sigma)
    torch.testing.assert_close(alpha, 1 - sigma)
    for low, high, share in ((0.0, 0.02, 0.005), (0.98, 1.0, 0.005), (0.25, 0.75, 0.25 * 0.5 + 0.75 * 0.728)):
        inside = ((sigma >= low) & (sigma < high)).float().mean().item()
        assert inside == pytest.approx(share, abs=0.015 if share > 0.1 else 0.002)


def test_refusals():
    with pytest.raises(ValueError, match=r"ddim cannot follow the noise schedule flow .* flow_euler, flow_dpm_2m"):
        make_solver("ddim", FLOW, 5)
    with pytest.raises(ValueError, match=r"flow_euler cannot follow the noise schedule linear .* ddim, ddpm"):
        make_solver("flow_euler", NoiseSchedule(), 5)
    with pytest.raises(ValueError, match=r"shift must be a finite number in \[1e-06, 1e\+06\], got 0"):
        make_solver("flow_euler", FLOW, 5, shift=0.0)
    with pytest.raises(ValueError, match=r"no option 'eta'; its options are \['shift'\]"):
        make_solver("flow_dpm_2m", FLOW, 5, eta=0.0)
    with pytest.raises(ValueError, match=r"num_evaluations of flow_dpm_2m must be .*, got 1"):
        make_solver("flow_dpm_2m", FLOW, 1)
    with pytest.raises(ValueError, match="unknown prediction 'x0'; known are noise, v, data, flow"):
        NoiseSchedule(prediction="x0")
