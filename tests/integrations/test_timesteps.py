"""Timesteps of a scheduler in the units of the model that is given them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from l2c.integrations.diffusers.timesteps import as_model_sees, trajectory_of

TIMES = (1000.0, 750.0, 500.0, 250.0)
UNITS = {
    "as they are": TIMES,
    "of one": tuple(t / 1000 for t in TIMES),
    "rising": tuple(1 - t / 1000 for t in TIMES),
    "one later": tuple(t - 1 for t in TIMES),
}


def scheduler(times=TIMES, begin=None):
    return SimpleNamespace(timesteps=times, config=SimpleNamespace(num_train_timesteps=1000), begin_index=begin)


@pytest.mark.parametrize("begin", range(4))
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_a_trajectory_is_in_the_units_of_its_model_wherever_it_begins(unit, begin):
    t = unit[begin]  # half-way 0.25 of a rising time is also the last one of a falling time
    assert t == 0.5 or as_model_sees(TIMES, t, scheduler(begin=begin)) == unit
    assert as_model_sees(TIMES, t, scheduler(), like=unit[::3]) == unit
    assert begin or as_model_sees(TIMES, t, scheduler()) == unit


def test_the_last_time_is_not_taken_for_the_first_of_another_unit():
    times = (1000.0, 667.0, 334.0, 1.0)  # AuraFlow: 1 is the first time of the model, and the scheduler's last
    assert as_model_sees(times, 1.0, scheduler(times)) == pytest.approx((1.0, 0.667, 0.334, 0.001))


@pytest.mark.parametrize(("begin", "made", "end"), [(0, 4, 4), (1, 3, 4), (0, 2, 2), (1, 2, 3), (1, 9, 4), (0, 0, 4)])
def test_a_call_ends_where_its_pipeline_ends(begin, made, end):
    pipe = SimpleNamespace(scheduler=scheduler(begin=begin), _num_timesteps=made)
    assert trajectory_of(pipe, TIMES[begin]) == (TIMES, end)
    del pipe._num_timesteps
    assert trajectory_of(pipe, TIMES[begin]) == (TIMES, 4)
