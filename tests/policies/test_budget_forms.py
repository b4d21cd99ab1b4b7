"""Budgets: three forms, what is out of reach, and rounding to whole layers."""

from __future__ import annotations

import re

import pytest

from l2c.policies.budget import BudgetOutOfReach, Worth, check_reach, evaluations_worth, rows_in_order


@pytest.mark.parametrize(
    ("budget", "worth"),
    [
        (0.4, 8),
        ("0.4", 8),
        (1, 20),
        (1.0, 20),
        ("2.5x", 8),
        (" 1x ", 20),
        (12.75, 12.75),
        ("12.75", 12.75),
        (1.01, 1.01),
        (30, 30),  # out of reach, which is for check_reach to say
        ("0.5x", 40),
    ],
)
def test_three_forms_of_a_budget(budget, worth):
    assert evaluations_worth(budget, 20) == pytest.approx(worth)


@pytest.mark.parametrize(
    "budget", [0, -0.5, "0x", "-2x", "x", "", "half", "2.5 y", "nan", float("nan"), float("inf"), "infx", True, None]
)
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ValueError, match=r"a budget is a share .* \(budget=2.5x\) or evaluations' worth") as refusal:
        evaluations_worth(budget, 20)
    assert str(refusal.value).endswith(f"got {budget!r}")


@pytest.mark.parametrize(("budget", "worth"), [("30x", 2 / 3), (0.04, 0.8), (1, 20), (5, 5)])
def test_a_budget_that_was_read_is_not_read_again(budget, worth):
    read = evaluations_worth(budget, 20)
    assert evaluations_worth(read, 20) is read
    assert read == pytest.approx(worth)
    assert evaluations_worth(Worth(0.5), 20) == 0.5


def test_reach():
    for worth in (5, 7.5, 20):
        check_reach(worth, 5, 20)
    for worth in (4.99, 20.01):
        with pytest.raises(
            BudgetOutOfReach, match=rf"a budget of {worth} evaluations' worth of MACs is out of reach; "
        ) as e:
            check_reach(worth, 5, 20)
        assert "range is 5.00..20 (0.25..1 as a share, 1x..4.00x as a speed-up)" in str(e.value)
    with pytest.raises(ValueError, match="out of reach with one router; the"):
        check_reach(1, 5, 20, "with one router")
    with pytest.raises(ValueError, match=r"1x..any speed-up"):
        check_reach(30, 0, 20)


@pytest.mark.parametrize(
    ("to_save", "taken"),
    [
        (0, 0),
        (4.9, 0),  # nearer to nothing than to the first layer's 10
        (5, 1),  # as near: the layer is taken
        (10, 1),
        (19.9, 1),  # the second layer costs 20
        (20, 2),
        (39.9, 3),
        (49.9, 3),
        (50, 4),
        (1000, 4),
    ],
)
def test_rows_in_order_come_as_near_to_the_budget_as_whole_layers_can(to_save, taken):
    """Savings of the entries in their order: 10, 30, 40, 60."""
    entries = [(2, 0), (1, 1), (1, 0), (2, 1)]
    rows = rows_in_order(entries, (10, 20), 3, to_save)
    assert [(e, i) for e, i in entries if not rows[e][i]] == entries[:taken]
    assert sum(not bit for row in rows for bit in row) == taken
    saved = [0, 10, 30, 40, 60]
    assert abs(saved[taken] - to_save) == min(abs(each - to_save) for each in saved)


@pytest.mark.parametrize("least", [1.638, 5.5501, 0.0])
def test_the_ends_of_the_range_that_is_named_are_within_reach(least):
    with pytest.raises(BudgetOutOfReach) as refusal:
        check_reach(30, least, 20)
    named = re.search(r"range is ([\d.]+)\.\.20 \(([\d.]+)\.\.1 as a share, 1x\.\.(\S+?x|any)", str(refusal.value))
    low, share, most = named.groups()
    for budget in (low, share, most):
        if budget != "any" and float(budget.removesuffix("x")):
            worth = Worth(float(low)) if budget == low else evaluations_worth(budget, 20)
            check_reach(worth, least, 20)
