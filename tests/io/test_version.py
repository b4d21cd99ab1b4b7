"""The version of the code: remarks do not change it, what decides on results does."""

import pytest

from l2c.io.version import code_version, plain_code

CODE = """
def interval(n=2, *, reuse="hold"):
    return n + 1
"""


@pytest.mark.parametrize(
    "same",
    [
        CODE.replace("return", "# a remark\n    return"),
        CODE.replace("    return", '    """A docstring."""\n    return'),
        CODE.replace("n=2, *,", "\n    n=2,\n    *,\n    "),
        CODE.replace('"hold"', "'hold'"),
    ],
)
def test_remarks_do_not_count(same):
    assert same != CODE
    assert plain_code(same) == plain_code(CODE)


@pytest.mark.parametrize("other", [("n=2", "n=3"), ('"hold"', '"linear"'), ("n + 1", "n - 1"), ("n + 1", "n + True")])
def test_what_it_does_counts(other):
    assert plain_code(CODE.replace(*other)) != plain_code(CODE)


def test_it_is_the_version_and_twelve_digits():
    from l2c import __version__

    version, _, digest = code_version().partition(", code ")
    assert version == __version__
    assert len(digest) == 12
