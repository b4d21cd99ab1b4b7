"""Nested values: walked in their order; too deep, too many or in a circle they are refused at once."""

import time

import pytest

from l2c.io.tensors import DEEPEST, MOST, check_nested, walked


def deep(levels, value=1):
    """Return a value that many lists deep."""
    for _ in range(levels):
        value = [value]
    return value


def circle():
    """Return a list that holds itself."""
    value = []
    value.append(value)
    return value


def laughs(levels=60):
    """Return a list of 2^levels members, made of few objects."""
    value = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def test_members_come_in_their_order_with_their_paths():
    value = {"a": [1, (2,)], "b": {}, "c": "text"}
    assert list(walked(value)) == [(("a", 0), 1), (("a", 1, 0), 2), (("c",), "text")]
    assert list(walked(3)) == [((), 3)]
    assert next(walked(deep(DEEPEST)))[0] == (0,) * DEEPEST
    check_nested("it", [[]] * (MOST - 1))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (deep(DEEPEST + 1), "lie 64 levels deep, or in a circle"),
        (deep(100_000), "lie 64 levels deep"),
        (circle(), "lie 64 levels deep"),
        (laughs(), "lie 64 levels deep, or|are more than 200000"),
        (laughs(40), "are more than 200000 mappings and lists"),
        ([[]] * MOST, "are more than 200000 mappings and lists"),
    ],
    ids=["deeper", "very deep", "circle", "doubled", "doubled often", "many"],
)
def test_what_cannot_be_looked_into_is_refused_at_once(value, words):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^options, whose members ({words})"):
        check_nested("options, whose", value)
    assert time.process_time() - start < 2
