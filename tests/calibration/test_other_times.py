"""Responses carried to other times, on functions whose values are known."""

import numpy as np
import pytest
import torch

from l2c.calibration.grid import Grid, step_coefficients
from l2c.calibration.other_times import ResponsesOnGrid, carry
from l2c.diffusion import FlowSchedule, NoiseSchedule, make_solver

L, M = 2, 3


def smooth(grid, max_age, max_ahead=3):
    """Return the responses of outputs f = t^2 / 1e6 + layer t / 1e3 with J = coefficient, at a grid."""
    t = np.asarray(grid.timesteps)
    f = t[:, None] ** 2 / 1e6 + np.arange(L) * t[:, None] / 1e3  # (E, L)
    back, ahead = np.zeros((len(t), L, max_age, M)), np.zeros((len(t), L, max_ahead, M))
    for e in range(len(t)):
        for a in range(1, min(e, max_age) + 1):
            back[e, :, a - 1] = grid.coefficients[e] * (f[e - a] - f[e])[:, None]
        for b in range(1, min(len(t) - 1 - e, max_ahead) + 1):
            ahead[e, :, b - 1] = grid.coefficients[e] * (f[e + b] - f[e])[:, None]
    return ResponsesOnGrid(grid, back.astype(np.float32), ahead.astype(np.float32))


def grid(solver="ddim", count=20, **options):
    schedule = FlowSchedule() if solver.startswith("flow") else NoiseSchedule()
    return Grid.of(make_solver(solver, schedule, count, **options))


def test_the_coefficients_of_ddim_and_euler_are_those_of_the_formulas():
    schedule = NoiseSchedule()
    solver = make_solver("ddim", schedule, 10)
    found = step_coefficients(solver)
    levels = [schedule.marginal(index) for index in solver.indices] + [(1.0, 0.0)]
    for e in range(10):
        (alpha, sigma), (alpha_after, sigma_after) = levels[e], levels[e + 1]
        assert found[e] == pytest.approx(sigma_after - alpha_after * sigma / alpha, rel=1e-6)
    euler = make_solver("flow_euler", FlowSchedule(), 8, shift=3.0)
    ends = [*euler.timesteps[1:], 0.0]
    assert step_coefficients(euler) == pytest.approx(
        [(b - a) / 1000 for a, b in zip(euler.timesteps, ends, strict=True)]
    )


def test_a_two_stage_step_has_an_indirect_and_a_direct_output():
    two = grid("dpm_solver_2s", 7)
    assert two.direct == (False, True, False, True, False, True, True)
    assert two.ends[0] == two.ends[1] == two.timesteps[2]
    assert grid("ddim").ends[-1] == 0


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2s", "dpm_solver_2m"])
def test_at_the_times_measured_nothing_changes(solver):
    here = grid(solver)
    measured = smooth(here, 6)
    carried = carry(measured, here, max_age=6)
    for e in range(1, 20):
        known = min(e, 6)
        assert np.allclose(carried[e, :, :known], measured.responses[e, :, :known], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("count", "max_age"), [(10, 4), (28, 8), (50, 12)])
def test_smooth_outputs_are_met_at_other_times(count, max_age):
    wanted = grid(count=count)
    carried = carry(smooth(grid(), 10), wanted, max_age=max_age)
    expected = smooth(wanted, max_age).responses
    for e in range(1, count):
        known = min(e, max_age)
        scale = np.abs(expected[e, :, :known]).max()
        assert np.nanmax(np.abs(carried[e, :, :known] - expected[e, :, :known])) < 0.02 * scale
        assert not np.isnan(carried[e, :, :known]).any()


def test_outputs_between_evaluations_carry_what_their_neighbours_do_not_tell():
    """Of outputs that swing once in two evaluations: as they are at three times between each two of them."""
    measured, wanted = grid(), grid(count=50)
    step = measured.timesteps[0] - measured.timesteps[1]

    def output(t):
        return np.sin(np.pi * np.asarray(t) / step + 0.4) / 10 + np.asarray(t) / 1e3

    def responses(of, ages, parts=(0,)):
        """Return responses (E, 1, ages * parts, 1) to outputs `age - part` evaluations older, the nearest first."""
        t = np.asarray(of.timesteps)
        found = np.zeros((len(t), 1, ages * len(parts), 1), dtype=np.float32)
        for e in range(len(t)):
            places = [e - age + part for age in range(1, ages + 1) for part in parts]
            for i, place in enumerate(places):
                if 0 <= place <= len(t) - 1:
                    other = np.interp(place, np.arange(len(t)), t)
                    found[e, 0, i] = of.coefficients[e] * (output(other) - output(t[e]))
        return torch.from_numpy(found)

    back = measured.timesteps[::-1]
    turned = Grid(back, back, measured.coefficients[::-1], measured.direct)
    tensors = {"responses": responses(measured, 8), "responses_ahead": responses(turned, 3).flip(0)}
    expected = responses(wanted, 6).numpy()
    scale, errors = np.abs(expected[10:40]).max(), []
    for known in (False, True):
        if known:
            parts = (0.75, 0.5, 0.25)
            tensors["responses_between"] = responses(measured, 8, parts)
            tensors["responses_ahead_between"] = responses(turned, 3, parts).flip(0)
        carried = carry(ResponsesOnGrid.of(measured, tensors), wanted, max_age=6)
        errors.append(np.abs(carried - expected)[10:40].max() / scale)
    assert errors[0] > 0.3
    assert errors[1] < 0.1 * errors[0]


def test_another_solver_and_shift_of_the_same_schedule_are_met():
    for here, there in (
        (grid("ddim", 25), grid("dpm_solver_2m", 30)),
        (grid("flow_euler", 25), grid("flow_euler", 30, shift=2.0)),
    ):
        carried = carry(smooth(here, 12), there, max_age=4)
        expected = smooth(there, 4).responses
        for e in range(4, 25):
            assert np.allclose(carried[e], expected[e], rtol=0.05, atol=0.03 * np.abs(expected[e]).max())


def test_ages_beyond_those_measured_are_unknown():
    carried = carry(smooth(grid(), 3), grid(count=40), max_age=16)
    assert not np.isnan(carried[30, :, :4]).any()
    assert np.isnan(carried[30, :, 10:]).all()


def test_times_outside_and_solvers_with_noise_are_refused():
    low = Grid((500.0, 300.0, 100.0), (300.0, 100.0, 0.0), (-0.1, -0.1, -0.1), (True,) * 3)
    with pytest.raises(ValueError, match="measured from t = 500 to 100, but t = 999 is wanted"):
        carry(smooth(low, 2), grid(), max_age=2)
    with pytest.raises(ValueError, match="adds noise at its steps"):
        grid("ddim", eta=0.5)
    with pytest.raises(ValueError, match="must rise or fall"):
        Grid((3.0, 3.0), (3.0, 3.0), (1.0, 1.0), (True, True))
    with pytest.raises(ValueError, match="3 timesteps must have as many ends, got 2"):
        Grid((3.0, 2.0, 1.0), (2.0, 1.0), (1.0, 1.0, 1.0), (True,) * 3)


def test_evaluations_within_a_step_of_those_measured_compute_everything():
    fine = grid("flow_euler", 50, shift=3.0)  # its last times lie nearer to 0 than those measured
    carried = carry(smooth(grid("flow_euler", shift=3.0), 10), fine, max_age=4)
    unknown = [e for e in range(1, 50) if np.isnan(carried[e, :, 0]).any()]
    assert unknown
    assert unknown == list(range(unknown[0], 50))
    assert len(unknown) <= 3
    expected = smooth(fine, 4).responses
    for e in range(1, unknown[0]):
        assert np.allclose(carried[e, :, 0], expected[e, :, 0], rtol=0.05, atol=0.03 * np.abs(expected[e]).max())
    late = Grid(tuple(range(950, -50, -50)), (*range(900, -50, -50), 0), (-0.1,) * 20, (True,) * 20)
    early = Grid(tuple(range(980, -20, -20)), (*range(960, -20, -20), 0), (-0.04,) * 50, (True,) * 50)
    carried = carry(smooth(late, 10), early, max_age=4)
    unknown = [e for e in range(1, 50) if np.isnan(carried[e, :, 0]).any()]
    assert unknown == [1, 2]  # t = 960 lies before 950, and at 940 its output is the last one
