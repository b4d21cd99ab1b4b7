"""Parts of a calibration, measured on different trajectories, joined to the whole."""

from dataclasses import replace

import pytest
import torch

import l2c
from l2c.calibration.joining import free_noises
from l2c.policies.expected_error import expected_error
from l2c.sampling.sampler import Sampler
from l2c.sampling.uncached import uncached_like

HOW = {"what": ["changes", "responses"], "batch_size": 1, "true_errors": 0, "seed": 3, "responses": {"num_probes": 2}}


@pytest.fixture(scope="module")
def sampler(make_dit):
    return Sampler(make_dit(depth=1), solver="ddim", num_evaluations=6, cfg_scale=1.5)


@pytest.fixture(scope="module")
def measured(sampler):
    def of(first, count, **others):
        return l2c.Calibration.measure(
            sampler, **{**HOW, "first_trajectory": first, "num_trajectories": count, **others}
        )

    return of


@pytest.fixture(scope="module")
def halves(measured):
    return measured(0, 2), measured(2, 1)


def test_halves_are_what_one_process_measures(halves, measured, tmp_path):
    whole = measured(0, 3)
    for index, half in enumerate(halves):
        half.save(tmp_path / f"{index}.safetensors")
    joined = l2c.Calibration.joined([tmp_path / "1.safetensors", str(tmp_path / "0.safetensors")])
    assert joined.settings == whole.settings
    assert (joined.binding, joined.grid, joined.cost) == (whole.binding, whole.grid, whole.cost)
    for name, tensor in whole.tensors.items():
        assert torch.allclose(joined.tensors[name], tensor, rtol=1e-5, atol=1e-6 * float(tensor.abs().max())), name
    for share in (0.7, 0.5):
        one, other = joined.graph(share), whole.graph(share)
        assert one.rows == other.rows
    one, other = (expected_error(of.tensor("responses")[3, 0, 0].numpy(), of, 0.5) for of in (joined, whole))
    assert one == pytest.approx(other, rel=1e-4)
    joined.save(tmp_path / "joined.safetensors")
    assert l2c.Calibration.load(tmp_path / "joined.safetensors").settings == joined.settings


def test_tuples_and_lists_are_alike(halves):
    one, other = (
        replace(part, settings={**part.settings, "of_hand": {"ages": kind([1, kind([2, 3])])}})
        for part, kind in zip(halves, (tuple, list), strict=True)
    )
    assert l2c.Calibration.joined([one, other]).settings["num_trajectories"] == 3
    for differing, first, second in (
        ({"ages": [1, [2, 4]]}, r"\{'ages': \[1, \[2, 3\]\]\}", r"\{'ages': \[1, \[2, 4\]\]\}"),
        ({"ages": [1, (2, 3)], "none": None}, r"\{\}", r"\{'none': None\}"),
    ):
        other = replace(halves[1], settings={**halves[1].settings, "of_hand": differing})
        with pytest.raises(ValueError, match=f"of_hand are {first} in part 1 and {second} in part 2"):
            l2c.Calibration.joined([one, other])


def test_other_seeds_are_told_apart_and_joined_further(halves, measured):
    other = measured(1, 1, seed=4)
    joined = l2c.Calibration.joined([other, *halves])
    assert joined.settings["num_trajectories"] == 4
    assert joined.settings["joined"] == [
        {"seed": 3, "first_trajectory": 0, "num_trajectories": 3},
        {"seed": 4, "first_trajectory": 1, "num_trajectories": 1},
    ]
    assert free_noises(joined.settings) == (3, 3)
    assert joined.tensor("responses").shape[3] == 8
    again = l2c.Calibration.joined([l2c.Calibration.joined([other, halves[1]]), halves[0]])
    assert again.settings == joined.settings
    mean = (
        sum(part.tensor("layer_change") * count for part, count in ((halves[0], 2), (halves[1], 1), (other, 1))) / 4
    )
    assert torch.allclose(joined.tensor("layer_change"), mean)


def test_corrections_are_means_over_trajectories(halves):
    def corrected(part, *shares, true):
        found = [{"num_evaluations": 6, "share": share, "predicted": 1e-3, "true": true} for share in shares]
        return replace(part, corrections=tuple(found))

    parts = corrected(halves[0], 0.8, 0.5, true=1e-3), corrected(halves[1], 0.8, true=4e-3)
    first, *rest = l2c.Calibration.joined(parts).corrections
    assert first == pytest.approx({"num_evaluations": 6, "share": 0.8, "predicted": 1e-3, "true": 2e-3})
    assert not rest
    assert len(l2c.Calibration.joined([parts[0], halves[1]]).corrections) == 2


def test_what_differs_in_more_than_trajectories_is_refused(halves, measured, sampler, tmp_path):
    def refused(other, sentence):
        with pytest.raises(ValueError, match=sentence):
            l2c.Calibration.joined([halves[0], other])

    refused(halves[0], "trajectory 0 of seed 3 is in two of the calibrations")
    refused(measured(1, 1), "trajectory 1 of seed 3 is in two")
    refused(
        measured(2, 1, responses={"num_probes": 1}), "differ in their trajectories alone, but the settings of resp"
    )
    refused(measured(2, 1, what=["responses"]), "but the settings of changes are")
    longer = uncached_like(sampler, num_evaluations=7)
    other = l2c.Calibration.measure(longer, **HOW, num_trajectories=1)
    refused(other, "but the timesteps are")
    other.save(tmp_path / "other.safetensors")  # parts keep the order in which they are given
    with pytest.raises(ValueError, match=r"in .*other\.safetensors and .* in part 2"):
        l2c.Calibration.joined([tmp_path / "other.safetensors", halves[0]])
    binding = replace(halves[1].binding, fingerprint="sha256:" + 64 * "0")
    refused(replace(halves[1], binding=binding), "but the fingerprint are sha256")
    unknown = {name: value for name, value in halves[1].settings.items() if name != "seed"}
    refused(replace(halves[1], settings=unknown), "but there is no seed; run l2c calibrate again")
    refused(
        replace(halves[1], settings={}),
        r"but the settings of changes are \{'max_age': 3\} in part 1 and None in part 2",
    )
    with pytest.raises(FileNotFoundError, match="no calibration at"):
        l2c.Calibration.joined([halves[0], tmp_path / "none"])
    for wrong in ([], [3], "x"):
        with pytest.raises(ValueError, match="parts must be"):
            l2c.Calibration.joined(wrong)
    broken = {**halves[1].settings, "joined": [{"seed": 1, "num_trajectories": 2, "first": 0}]}
    with pytest.raises(ValueError, match=r"the field settings\.joined\.first is unknown"):
        replace(halves[1], settings=broken)
