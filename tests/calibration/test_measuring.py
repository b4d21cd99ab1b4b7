"""Every way to a calibration writes down how it was measured."""

import math

import numpy as np
import pytest
import torch

import l2c
from l2c.calibration.changes import measure_changes
from l2c.calibration.measurements import Measurements
from l2c.calibration.measuring import measure
from l2c.calibration.responses import measure_both_ways
from l2c.policies.best import with_responses
from l2c.policies.expected_error import expected_error
from l2c.sampling.sampler import Sampler, seeded_noise


@pytest.fixture(scope="module")
def sampler(make_dit):
    return Sampler(make_dit(), solver="ddim", num_evaluations=5, cfg_scale=1.5)


def test_tensors_are_those_of_the_measurements_and_settings_are_complete(sampler):
    given = {"num_probes": 3, "max_age": 2}
    found = measure(Measurements, sampler, what=("changes", "responses"), num_trajectories=2, seed=3, responses=given)
    noise, labels = seeded_noise(sampler.backbone.input_shape, 3, 2), torch.arange(2)
    responses = measure_both_ways(sampler, labels, noise, seed=3, between=3, **given)
    ways = {f"{of}responses{way}" for of in ("", "output_") for way in ("", "_ahead")}
    assert set(responses) == ways | {"output_responses_between", "output_responses_ahead_between"}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in responses.items())
    changes = measure_changes(sampler, labels, noise, batch_size=8)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in changes.items())
    assert found.settings == {
        "seed": 3,
        "first_trajectory": 0,
        "num_trajectories": 2,
        "batch_size": 8,
        "measure": ["changes", "responses"],
        "changes": {"max_age": 3},
        "responses": {"method": "gradient", "between": 3, **given},
    }
    assert found.grid.timesteps == sampler.timesteps
    assert found.cost.evaluation > 0


def test_settings_that_are_not_given_are_written_down_too(sampler):
    found = measure(Measurements, sampler, num_trajectories=2, batch_size=2)
    assert found.settings["responses"] == {
        "method": "gradient",
        "num_probes": 8,
        "max_age": 4,
        "between": 3,
    }
    again = with_responses(sampler, found.settings).required_calibration()
    assert again.settings == found.settings
    assert torch.equal(again.tensors["responses"], found.tensors["responses"])


def test_there_are_no_more_directions_than_numbers_of_an_image(sampler):
    most = math.prod(sampler.backbone.input_shape)
    with pytest.raises(
        ValueError, match=f"num_probes must be at most {most}, the numbers that an image has, got 1000"
    ):
        measure(Measurements, sampler, num_trajectories=1, responses={"num_probes": 1000})


def test_probes_of_one_trajectory_are_no_trajectories_of_their_own(sampler):
    found = measure(Measurements, sampler, num_trajectories=3, batch_size=3)
    change = found.tensor("responses")[3, 1, 0].numpy()
    each = 3 * np.square(change.astype(np.float64)).reshape(3, 8).sum(axis=1)
    expected = expected_error(change, found, 0.5)
    assert expected["expected_mse"] == pytest.approx(each.mean())
    assert expected["expected_mse_standard_error"] == pytest.approx(each.std(ddof=1) / 3**0.5)


def test_the_public_class_measures_and_corrects(sampler):
    options = {"num_trajectories": 2, "responses": {"num_probes": 2, "max_age": 4}}
    found = l2c.Calibration.measure(sampler, true_errors=2, **options)
    assert found.corrections
    assert found.graph(0.7, num_steps=7).num_evaluations == 7
    assert not l2c.Calibration.measure(sampler, true_errors=0, **options).corrections
    assert not l2c.Calibration.measure(sampler, what=["changes"], num_trajectories=2).corrections
