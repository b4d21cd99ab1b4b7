"""Curves: few families are labelled, the best ones, at the ends of their lines; budgets are marked."""

from itertools import pairwise

import pytest
from matplotlib.text import Text

from l2c.report.curves import budget_curve, families, moved_apart, pareto
from l2c.report.method_table import Cell, lines

BUDGETS = (15.0, 8.0, 5.0)


def cells(methods=12):
    return [
        Cell(f"m{i}", target, seed, target - 0.1, 1e-5 * (i + 1) * (20 - target), 1e-6, 1e-5, target / 20, 1.0)
        for i in range(methods)
        for target in BUDGETS
        for seed in range(2)
    ]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_the_best_seven_are_labelled_and_the_others_counted():
    found = texts(pareto(cells()))
    assert [name for name in (f"m{i}" for i in range(12)) if name in found] == [f"m{i}" for i in range(7)]
    assert "grey: 5 other methods, see the table" in found
    assert {"budget 15", "budget 8", "budget 5"} <= set(found)
    assert "1e-05" not in "".join(found)


def test_the_axis_says_what_errors_are_the_distance_to():
    assert "mean squared error to the uncached images, x 1e-5" in texts(pareto(cells()))
    ode = pareto(cells(), measured_to="solution of the ODE, the images of the same solver with 200 evaluations")
    assert "mean squared error to the solution of the ODE, x 1e-5" in texts(ode)


def test_a_family_is_its_best_method_at_each_budget():
    found = lines(cells(3))
    (family, other) = families(found, {"m0": "ours", "m2": "ours"})
    assert (family.name, other.name) == ("ours", "m1")
    assert {line.method for line in family.lines} == {"m0"}
    assert len(family.lines) == len(BUDGETS)


def test_some_are_labelled_however_large_their_errors_are():
    assert [family.name for family in families(lines(cells(5)), most=3, always=["m4"])] == ["m0", "m1", "m4"]


def test_methods_that_miss_a_budget_come_after_those_that_do_not():
    few = [cell for cell in cells(3) if cell.method != "m0" or cell.budget == 15]
    assert [family.name for family in families(lines(few))] == ["m1", "m2", "m0"]


def test_exact_methods_and_single_budgets_can_be_drawn():
    exact = Cell("exact", 8.0, 0, 8.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    for drawn in ([exact, *cells(1)[:1]], [exact]):
        texts = [text.get_text() for axes in pareto(drawn).axes for text in axes.texts]
        assert "grey: exact" in texts  # no error to place it by, but named
        assert ("m0" in texts) == (len(drawn) == 2)


def test_labels_are_moved_apart_as_little_as_needed():
    assert moved_apart([0, 100], 10) == [0, 100]
    assert moved_apart([50, 50], 10) == [45, 55]
    assert moved_apart([50, 50, 56], 10) == pytest.approx([42, 52, 62])
    places = moved_apart([0, 1, 2, 12, 40], 10)
    assert all(after - before >= 10 - 1e-9 for before, after in pairwise(places))
    assert places[-1] == 40


def test_budget_curve_shows_what_the_macs_allow():
    figure = budget_curve(
        [10, 5, 20], [1e-4, 1e-3, 0], num_evaluations=20, title="t" * 300, budgets=[8], marked={"chosen": 9}
    )
    found = texts(figure)
    assert {"2 x", "4 x", "budget 8", "chosen", "predicted mean squared error x 1e-5"} <= set(found)
    (line,) = (line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert list(line.get_xdata()) == [5, 10]  # an error of 0 has no place on a logarithmic axis


def test_budget_curve_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="one error per graph, got 2 costs, 1 errors"):
        budget_curve([1, 2], [1], num_evaluations=20, title="")
    with pytest.raises(ValueError, match="no error above 0"):
        budget_curve([1], [0], num_evaluations=20, title="")
