"""Numbers in tables."""

import pytest

from l2c.report.table import short


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.0123456, 3, "0.0123"), (12.34, 3, "12.3"), (999.9, 3, "1,000"), (100.4, 2, "100"), (0, 3, "0")],
)
def test_numbers_keep_the_digits_that_count(value, digits, text):
    assert short(value, digits) == text


def test_what_is_not_finite_is_said():
    assert short(float("nan")) == "nan"
