"""States between evaluations of diffusers' schedulers: made of the same data and noise as both neighbours."""

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

import diffusers

from l2c.diffusion import NoiseSchedule
from l2c.integrations.diffusers.scheduler_solver import Preconditioning, SchedulerSolver, noising_of

STEPS = 20
EVALUATION, SHARE = 7, 0.25
DATA, NOISE = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def solver_of(kind, scale=1.0, rising=False, first=0, around=None, **config):
    scheduler = getattr(diffusers, kind)(**config)
    scheduler.set_timesteps(STEPS)
    times = [scale * float(t) for t in scheduler.timesteps]
    times = [1 - t for t in times] if rising else times
    return SchedulerSolver(scheduler, times, first=first, around=around)


def states_of(marginals):
    return [alpha * DATA + sigma * NOISE for alpha, sigma in marginals]


DISCRETE = {
    "DDIMScheduler": {},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {"timestep_spacing": "trailing"},
    "EulerDiscreteScheduler": {},
    "LMSDiscreteScheduler": {"use_karras_sigmas": True},
}


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("kind", DISCRETE)
def test_states_of_diffusion(kind, first):
    """Alpha and sigma are those of the scheduler's own table, between whose steps log alpha is a line."""
    solver = solver_of(kind, first=first, **DISCRETE[kind])
    ends = [solver.timesteps[EVALUATION + after] for after in (0, 1)]
    t = (1 - SHARE) * ends[0] + SHARE * ends[1]
    known = NoiseSchedule(name="linear")  # as those schedulers have it where nothing is said
    states = states_of(known.marginal(index) for index in ends)
    state, at = solver.between(EVALUATION, SHARE, *states)
    assert at == pytest.approx(t)
    torch.testing.assert_close(state, states_of([known.marginal(t)])[0], rtol=0, atol=2e-4)


FLOWS = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0},
    "UniPCMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
}


@pytest.mark.parametrize("model", [{}, {"scale": 1e-3}, {"scale": 1e-3, "rising": True}])
@pytest.mark.parametrize("kind", FLOWS)
def test_states_of_flows(kind, model):
    """A straight line from noise to data; t as the model counts it."""
    solver = solver_of(kind, **model, **FLOWS[kind])
    sigmas = solver._scheduler.sigmas[EVALUATION : EVALUATION + 2].tolist()
    sigma = (1 - SHARE) * sigmas[0] + SHARE * sigmas[1]
    states = states_of((1 - s, s) for s in sigmas)
    state, at = solver.between(EVALUATION, SHARE, *states)
    ends = solver.timesteps[EVALUATION : EVALUATION + 2]
    assert at == pytest.approx((1 - SHARE) * ends[0] + SHARE * ends[1])
    torch.testing.assert_close(state, states_of([(1 - sigma, sigma)])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "IPNDMScheduler"])
def test_none_where_data_and_noise_are_mixed_otherwise(kind):
    solver = solver_of(kind)
    assert solver.between(EVALUATION, SHARE, DATA, NOISE) is None


def test_none_where_the_pipeline_scales_states_itself():
    factors = (1.0,) * STEPS
    solver = solver_of("FlowMatchEulerDiscreteScheduler", around=Preconditioning(None, factors, factors, factors))
    assert solver.between(EVALUATION, SHARE, DATA, NOISE) is None


def test_none_where_model_and_scheduler_count_time_differently():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    assert noising_of(scheduler, [float(t) for t in scheduler.timesteps]) is not None
    assert noising_of(scheduler, [float(t) ** 0.5 for t in scheduler.timesteps]) is None


def test_zero_terminal_signal_and_a_single_evaluation():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    solver = SchedulerSolver(scheduler, scheduler.timesteps.tolist())
    state, _ = solver.between(0, 0.5, NOISE, states_of([solver._noising[0].marginal(949)])[0])
    assert state.isfinite().all()
    assert noising_of(scheduler, [999.0]) is None
