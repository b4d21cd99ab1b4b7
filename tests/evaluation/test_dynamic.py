"""Dynamic methods: the limits of their thresholds, and one image at a time."""

import pytest
import torch

from l2c.evaluation.dynamic import Accumulated, DynamicSampler, Magnitude
from l2c.evaluation.dynamic_methods import DYNAMIC, at_budget, dynamic_method, measure
from l2c.sampling.sampler import Sampler, seeded_noise

E = 8


@pytest.fixture
def uncached(backbone):
    return Sampler(backbone, solver="ddim", num_evaluations=E, cfg_scale=2.0)


@pytest.fixture
def start(uncached):
    return torch.tensor([1, 4, 2, 0]), seeded_noise(uncached.backbone.input_shape, 0, 4)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_threshold_of_zero_computes_everything_and_a_large_one_next_to_nothing(uncached, start, name):
    labels, noise = start
    options = {"front": 1} if name.startswith("dbcache") else {}
    method = dynamic_method(name, uncached, labels, noise, **options)
    least = DynamicSampler(uncached, method, -1.0)
    plain = uncached.sample(labels, noise=noise)
    torch.testing.assert_close(least.sample(labels, noise=noise), plain, rtol=0, atol=1e-6 * float(plain.abs().max()))
    assert least.evaluations_worth == pytest.approx(E)
    most = DynamicSampler(uncached, method, 1e9)
    assert not torch.equal(most.sample(labels, noise=noise), uncached.sample(labels, noise=noise))
    assert most.evaluations_worth < 0.75 * E


@pytest.mark.parametrize("name", ["first_block_cache", "dbcache_taylor", "teacache"])
def test_each_image_decides_as_if_it_were_alone(uncached, start, name):
    labels, noise = start
    options = {"front": 1} if name.startswith("dbcache") else {}
    method = dynamic_method(name, uncached, labels, noise, **options)
    together = at_budget(name, uncached, 0.7 * E, num_trajectories=4, seed=0, **options)
    together.method = method
    images = together.sample(labels, noise=noise)
    alone = DynamicSampler(uncached, method, together.threshold)
    each = torch.cat([alone.sample(labels[i : i + 1], noise=noise[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(images, each, rtol=1e-4, atol=1e-4)
    assert alone.evaluations_worth == pytest.approx(together.evaluations_worth)


def test_teacache_sums_estimates_and_magcache_errors_of_ratios():
    one = torch.ones(1, 4)
    tea = Accumulated(0.25, (2.0, 0.0), 10)  # twice the change
    tea.computed(one, torch.tensor([True]))
    found = []
    for e in range(1, 10):
        signal = one * 1.05**e  # a change of 0.05, which counts 0.1
        found.append(bool(tea.computes(e, signal)))
        tea.computed(signal, torch.tensor([found[-1]]))
    assert found == [False, False, True, False, False, True, False, False, True]  # the last one computes anyway
    mag = Magnitude(0.25, (1.0, *[0.9] * 9), retention=0.2, max_skips=5)
    # The errors 0.1, 0.19 (in all 0.29) exceed 0.25 at every second evaluation; evaluation 1 is retained.
    assert [bool(mag.computes(e, one)) for e in range(1, 10)] == [True, *[False, True] * 4]
    few = Magnitude(9.0, (1.0, *[0.9] * 9), retention=0.2, max_skips=3)
    assert [bool(few.computes(e, one)) for e in range(1, 10)] == [True, *[False] * 3, True, *[False] * 3, True]


def test_what_is_measured_has_a_value_for_each_evaluation(uncached, start):
    measured = measure(uncached, *start)
    assert measured.input_changes.shape == measured.output_changes.shape == (E - 1, 4)
    assert len(measured.ratios) == E
    assert measured.ratios[0] == 1.0


def test_bad_names_and_options_are_refused(uncached, start):
    with pytest.raises(ValueError, match=r"unknown dynamic method 'teacach'; known are .*teacache"):
        dynamic_method("teacach", uncached, *start)
    with pytest.raises(ValueError, match="first_block_cache has no option 'front'; its options are none"):
        dynamic_method("first_block_cache", uncached, *start, front=2)
    method = dynamic_method("dbcache", uncached, *start, front=9)
    with pytest.raises(ValueError, match=r"front \+ back must be below the \d blocks, got 9 and 0"):
        DynamicSampler(uncached, method, 0.1).sample(start[0], noise=start[1])
