"""Fields of JSON: names for messages are made only where something is refused."""

import pytest

from l2c.io import json_fields
from l2c.io.json_fields import items


def test_long_lists_make_no_names(monkeypatch):
    monkeypatch.setattr(json_fields, "shown", None)  # a call would raise
    assert items({"a": [1, 2.5]}, "a", (int, float), "a") == [1, 2.5]
    assert items({"a": [2.0, 3]}, "a", int, "a") == [2, 3]


@pytest.mark.parametrize(("values", "kind", "wrong"), [([1, True], int, "a[1]"), (["x", None], str, "a[1]")])
def test_the_wrong_item_is_named(values, kind, wrong):
    with pytest.raises(ValueError, match="must be") as refusal:
        items({"a": values}, "a", kind, "a")
    assert f"the field {wrong} must be {kind.__name__}" in str(refusal.value)
