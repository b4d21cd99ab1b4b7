"""Numbers and names in messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2c.io.names import listed, quoted, shown
from l2c.io.numbers import finite_number, truth_value, whole_number

ONES = [1, 1.0, np.float32(1), np.int64(1), np.array(1), torch.tensor(1), torch.tensor(1.0, requires_grad=True)]


@pytest.mark.parametrize("value", ONES, ids=repr)
def test_numbers_of_any_kind_are_taken(value):
    assert type(finite_number("x", value)) is float
    assert type(whole_number("x", value)) is int
    assert finite_number("x", value) == whole_number("x", value) == 1


@pytest.mark.parametrize(
    ("value", "got"),
    [
        *(("1", r"'1' \(str\)"), (None, r"None \(NoneType\)"), ([1], r"list \(list\)")),
        *((true, r"True \(bool\)") for true in (True, np.bool_(True), torch.tensor(True))),
        *((torch.tensor([1]), r"Tensor \(Tensor\)"), (torch.tensor(1, device="meta"), r"Tensor \(Tensor\)")),
    ],
)
def test_what_is_no_number_is_refused(value, got):
    for check in (finite_number, whole_number):
        with pytest.raises(ValueError, match=rf"^x must be a .* number, got {got}$"):
            check("x", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -1, 3])
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"^x must be a finite number in \[0, 2\], got "):
        finite_number("x", value, low=0, high=2)
    with pytest.raises(ValueError, match=r"^x must be a whole number in \[0, 2\], got "):
        whole_number("x", value, low=0, high=2)


def test_limits_of_whole_numbers_are_written_out():
    with pytest.raises(ValueError, match=r"^x must be a whole number in \[0, 4294967295\], got -1$"):
        whole_number("x", -1, low=0, high=2**32 - 1)


def test_a_fraction_is_no_whole_number():
    with pytest.raises(ValueError, match=r"x must be a whole number of at least 1, got 2\.5"):
        whole_number("x", 2.5, low=1)


def test_text_of_strangers_is_shown_on_one_short_line():
    hostile = "\x1b]0;title\x07\n\u202e" + 500 * "a"
    for text in (shown(hostile), quoted(hostile), listed([hostile])):
        assert text.isprintable()
        assert len(text) < 150
    assert quoted({"a": 1}) == "dict"
    assert listed(range(10)) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"


@pytest.mark.parametrize("check", [finite_number, whole_number, truth_value])
def test_a_name_of_a_stranger_is_shown_without_its_control_characters(check):
    with pytest.raises(ValueError, match="must be") as error:
        check("options.\x1b[31m\ud7fc\n" + "x" * 1000, None)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
