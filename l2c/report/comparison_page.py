"""The page that a comparison of many methods at several budgets ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from l2c.graph.cache_graph import CacheGraph
from l2c.io.names import counted
from l2c.report.curves import MOST_FAMILIES, budget_label, pareto
from l2c.report.method_table import HEADER, TIE, Cell, Line, lines, row_of
from l2c.report.page import Column, Section, TableCell, curves_html, page_html, table_html, write_page
from l2c.report.page_graph import graph_html
from l2c.report.page_samples import samples_html
from l2c.report.samples import SampleRow

MEANINGS = (
    "The cost that was asked for, in evaluations' worth of MACs.",
    "How the graph was made; fewer_steps is the uncached sampler with fewer evaluations.",
    "What the method took: multiply-accumulate operations of a trajectory over those of one full evaluation.",
    "Mean squared error per pixel to the images that errors are measured to, from the same noise, with its standard "
    "error over seeds; where there is one seed, over noises.",
    "The error that 99 % of the noises stay under, x 1e-5; a mean over seeds. Caching has rare large errors.",
    f"The error over the least error at this budget; ratios under {TIE:g} are called ties.",
    "Wall-clock time of the uncached sampler over that of the method, measured in alternation.",
    "How many draws, trainings or calibrations the line is the mean of.",
)


@dataclass(frozen=True)
class ComparisonPage:
    """All that the page of a comparison shows.

    Attributes:
        model: name of the model.
        facts: what was compared and how, by name: solver, noises, machine, command and others, as the reader
            should see them.
        cells: every measurement.
        samples: per budget the images of each method, for the picture grid.
        graphs: per budget the graph of each method.
        family_of: method to family, for the curves; a method without one is a family of its own.
        always: families that the curves label before others, however large their errors are.
        measured_to: what errors are the distance to.

    """

    model: str
    facts: Mapping[str, str]
    cells: Sequence[Cell]
    samples: Mapping[float, Sequence[SampleRow]] = field(default_factory=dict)
    graphs: Mapping[float, Mapping[str, CacheGraph]] = field(default_factory=dict)
    family_of: Mapping[str, str] | None = None
    always: Sequence[str] = ()
    measured_to: str = "uncached images"

    def curves(self) -> Figure:
        """Return the curves of error against cost, as the page shows them."""
        return pareto(self.cells, family_of=self.family_of, always=self.always, measured_to=self.measured_to)

    def html(self) -> str:
        """Return the page.

        Raises:
            ValueError: if there is no measurement.

        """
        if not self.cells:
            raise ValueError("a comparison needs at least one measurement; no method reached any of the budgets")
        found = lines(self.cells)
        methods = list(dict.fromkeys(line.method for line in found))
        budgets = list(dict.fromkeys(line.budget for line in found))
        lead = (
            f"{counted(len(methods), 'way')} to sample from {self.model} at {counted(len(budgets), 'budget')} of "
            "computation. Each starts from the same noises; its error is the distance of its images to the "
            f"{self.measured_to}, so 0 is perfect. Less error at the same cost is better."
        )
        return page_html(f"Caching compared: {self.model}", lead, self.facts, self._sections(found, budgets))

    def _families(self) -> str:
        """Say which methods share a line."""
        members: dict[str, list[str]] = {}
        for method in dict.fromkeys(cell.method for cell in self.cells):
            members.setdefault((self.family_of or {}).get(method, method), []).append(method)
        return "".join(
            f"{name} is the best of {', '.join(methods)} at each budget. "
            for name, methods in members.items()
            if len(methods) > 1
        )

    def _sections(self, found: Sequence[Line], budgets: Sequence[float]) -> list[Section]:
        """Return the table, the curves, and for each budget its pictures and graphs."""
        columns = [Column(n, m, words=n == "method") for n, m in zip(HEADER, MEANINGS, strict=True)]
        rows = [[TableCell(*pair) for pair in zip(row_of(line), _orders(line), strict=True)] for line in found]
        best = [i for i, line in enumerate(found) if line.ratio == 1]
        caption = (
            f"Error against cost, to the left by MACs, to the right by measured time. At most {MOST_FAMILIES} lines "
            f"are labelled. {self._families()}Bars are standard errors; dashed lines are the budgets."
        )
        parts = [
            Section("Error against cost", curves_html(self.curves(), caption)),
            Section("Table", table_html(columns, rows, best=best)),
        ]
        for budget in budgets:
            order = [line.method for line in found if line.budget == budget]
            pictures = samples_html(self.samples.get(budget, ()))
            graphs = _graphs(self.graphs.get(budget, {}), order)
            if pictures or graphs:
                parts.append(Section(budget_label(budget).capitalize(), pictures + graphs))
        return parts


def _orders(line: Line) -> tuple[float | None, ...]:
    """Return the number that each column of a line is sorted by."""
    return (
        line.budget,
        None,
        line.evaluations_worth,
        line.mse,
        line.mse_p99,
        line.ratio,
        line.speed_up,
        line.num_seeds,
    )


def _graphs(graphs: Mapping[str, CacheGraph], order: Sequence[str]) -> str:
    """Return the graphs of a budget, the least error first and open, the others folded."""
    methods = [name for name in order if name in graphs]
    shown = [
        graph_html(
            graphs[name],
            f"Graph of {name}" + (", the least error of the graphs at this budget" if i == 0 else ""),
            opened=i == 0,
        )
        for i, name in enumerate(methods)
    ]
    return "<h3>What is computed and what is reused</h3>" + "".join(shown) if shown else ""


def write_comparison_page(folder: str | Path, page: ComparisonPage) -> Path:
    """Write `report.html` into a folder and return its path."""
    return write_page(Path(folder) / "report.html", page.html())
