"""The table of methods and budgets: means over seeds, ties."""

import csv
import io

import pytest

from l2c.report.method_table import Cell, lines, to_csv, to_markdown


def cell(method, mse, seed=0, budget=8.0):
    return Cell(method, budget, seed, 8.1, mse, 0.1 * mse, 5 * mse, 1.0, 2.0)


CELLS = [
    cell("a", 1e-4),
    cell("b", 1.4e-4),
    *(cell("c", mse, seed) for seed, mse in enumerate((2e-4, 4e-4, 3e-4))),
    cell("d", 1, 0, 5),
]


def test_lines_average_seeds_and_order_by_error():
    found = lines(CELLS)
    assert [(line.budget, line.method) for line in found] == [(8, "a"), (8, "b"), (8, "c"), (5, "d")]
    assert found[2].mse == pytest.approx(3e-4)
    assert found[2].standard_error == pytest.approx(1e-4 / 3**0.5)  # over seeds, not noises
    assert found[0].standard_error == pytest.approx(1e-5)
    assert found[2].mse_p99 == pytest.approx(15e-4)
    assert found[0].speed_up == 2.0
    assert [line.verdict for line in found] == ["best", "tie (1.40 x)", "3 x", "best"]


def test_table_calls_near_ones_ties():
    text = to_markdown(CELLS)
    assert "tie (1.40 x)" in text
    assert "10 ± 1 " in text
    assert len(text.splitlines()) == 6


def test_csv_holds_every_cell():
    rows = list(csv.DictReader(io.StringIO(to_csv(CELLS))))
    assert len(rows) == len(CELLS)
    assert float(rows[1]["mse"]) == 1.4e-4
