"""Rules of settings: what is allowed, and the sentence where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from l2c.io.settings import Either, Items, Number, Settings, Table, Text, flag, number, ruled, text, whole


@dataclass(frozen=True)
class Oven(Settings, group="oven"):
    heat: float = number(3e-3, at_least=0)
    share: float = number(0.5, at_least=0, at_most=1)
    trays: int = whole(2, at_least=1)
    mode: str = text("grill", choices=("grill", "fan"))
    door: bool = flag(False)
    start: float | str = ruled(Either(rules=(Number(), Text(choices=("now",)))), "now")
    times: list[int] = ruled(Items(item=Number(whole=True, at_least=1), single=True), [1])
    marks: dict[str, float] = ruled(Table(item=Number(), names=("a", "b")), {})
    note: str | None = text(None, optional=True)


def test_allowed_values_pass_as_they_are():
    oven = Oven(heat=0, share=1, trays=1, mode="fan", start=-2, times=3, marks={"a": 1.5}, note="x")
    assert (oven.heat, oven.times, oven.note) == (0, 3, "x")
    assert Oven.of({"heat": 1.0}) == Oven(heat=1.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"heat": "abc"}, "oven.heat must be a number >= 0, got 'abc'; e.g. oven.heat=0.003"),
        ({"heat": math.nan}, "oven.heat must be a number >= 0, got nan; e.g. oven.heat=0.003"),
        ({"heat": math.inf}, "oven.heat must be a number >= 0, got inf; e.g. oven.heat=0.003"),
        ({"heat": None}, "oven.heat must be a number >= 0, got null; e.g. oven.heat=0.003"),
        ({"heat": True}, "oven.heat must be a number >= 0, got true; e.g. oven.heat=0.003"),
        ({"heat": 10**400}, "got a whole number of more than 63 bits"),
        ({"share": 2}, "oven.share must be a number >= 0 and <= 1, got 2"),
        ({"trays": 0}, "oven.trays must be a whole number >= 1, got 0; e.g. oven.trays=2"),
        ({"trays": 2.0}, "oven.trays must be a whole number >= 1, got 2.0"),
        ({"mode": "gril"}, "oven.mode must be grill or fan, got 'gril'; did you mean grill?"),
        ({"door": 1}, "oven.door must be true or false, got 1"),
        ({"start": "soon"}, "oven.start must be a number or now, got 'soon'"),
        ({"times": []}, "oven.times must be a list of at least one item"),
        ({"times": [1, None]}, "each a whole number >= 1, got [1, None]"),
        ({"marks": {"c": 1}}, "oven.marks must be a mapping of a, b, each value a number"),
        ({"note": "a\0b"}, r"oven.note must be a text or null, got 'a\x00b'"),
        ({"heet": 1}, "unknown setting oven.heet; did you mean oven.heat?"),
    ],
)
def test_others_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError) as refusal:
        Oven.of(given)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    if "heet" not in given:
        with pytest.raises(ValueError):
            Oven(**given)
