"""Trainings that go on with another number of processes: the same routers, and a line on it."""

import pytest
from process_counts import TOLERANCE, far, train  # noqa: F401 - a fixture


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("data", ["digits", "noise"])
def test_another_number_of_processes_goes_on(train, tmp_path, times, counted, data, before, after):  # noqa: F811
    times(0, 1)
    changes = [f"data={data}", "router=l2c" if data == "digits" else "router=budget"]
    train(tmp_path / "run", *changes, "trainer.max_steps=3", f"trainer.devices={before}", processes=before)
    longer = [*changes, "trainer.max_steps=6"]
    resumed = train(tmp_path / "run", *longer, f"trainer.devices={after}", "resume=auto", processes=after)
    assert f"was shared by {before} process" in train.said[-1]
    difference = far(resumed, train(tmp_path / "whole", *longer))
    counted(difference=f"{difference:.1e}")
    assert difference < TOLERANCE
