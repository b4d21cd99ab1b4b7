"""The ratio of true to predicted errors, between and beyond the numbers of evaluations where it is known."""

import pytest

from l2c.policies.expected_error import true_over_predicted


def correction(num_evaluations, share, ratio):
    return {"num_evaluations": num_evaluations, "share": share, "predicted": 2.0, "true": 2.0 * ratio}


def test_a_power_of_the_number_of_evaluations_is_met():
    known = [
        correction(n, share, (n / 10) * slope) for n in (10, 20, 40) for share, slope in ((0.6, 3.0), (0.4, 2.0))
    ]
    for n in (8, 10, 14, 20, 30, 50):
        assert true_over_predicted(known, n, 0.6) == pytest.approx(n / 10 * 3.0)
        assert true_over_predicted(known, n, 0.3) == pytest.approx(n / 10 * 2.0)
    assert true_over_predicted(known, 20, 0.5) == pytest.approx(2 * 6.0**0.5)
    assert true_over_predicted(known, 4000, 0.4) == pytest.approx(16.0)  # not followed further than to 80


def test_one_number_of_evaluations_counts_for_all_and_none_for_nothing():
    assert true_over_predicted([correction(20, 0.5, 3.0)], 50, 0.9) == pytest.approx(3.0)
    assert true_over_predicted([], 50, 0.9) == 1.0


def test_numbers_of_evaluations_that_lie_close_together_lead_to_no_infinite_ratio():
    known = [correction(n, 0.5, ratio) for n, ratio in ((4095, 1e-60), (4096, 1e60))]
    assert true_over_predicted(known, 9000, 0.5) == pytest.approx(1e12)
    assert true_over_predicted(known, 2, 0.5) == pytest.approx(1e-12)
