"""Many methods at several budgets: one measurement per cell, tables in which near ones are called ties."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from l2c.report.table import markdown_table, short
from l2c.sampling.image_error import standard_error

TIE = 1.5  # ratios of errors below this are ties
HEADER = (
    "budget",
    "method",
    "MACs (evaluations)",
    "MSE x 1e-5",
    "99 % under",
    "against the least",
    "speed-up",
    "seeds",
)


@dataclass(frozen=True)
class Cell:
    """One method at one budget with one seed.

    Attributes:
        method: name of the method.
        budget: the budget asked for, in evaluations' worth of MACs.
        seed: seed of the draw or of the training.
        evaluations_worth: MACs that it took, in full evaluations.
        mse: mean squared error per pixel against the uncached images.
        mse_standard_error: its standard error over noises.
        mse_p99: the error that 99 % of the noises stay under.
        seconds: wall-clock of one batch, median.
        uncached_seconds: the same of the uncached sampler, measured in alternation.

    """

    method: str
    budget: float
    seed: int
    evaluations_worth: float
    mse: float
    mse_standard_error: float
    mse_p99: float
    seconds: float
    uncached_seconds: float


@dataclass(frozen=True)
class Line:
    """The cells of one method at one budget, averaged over seeds.

    Attributes:
        method: name of the method.
        budget: the budget asked for.
        evaluations_worth: mean MACs, in full evaluations.
        mse: mean over seeds.
        standard_error: over seeds from two on, else over noises.
        mse_p99: mean over seeds of the error that 99 % of the noises stay under.
        speed_up: mean ratio of the uncached time to this one's.
        num_seeds: number of seeds.
        ratio: error over the least of this budget; under 1.5 it is a tie.

    """

    method: str
    budget: float
    evaluations_worth: float
    mse: float
    standard_error: float
    mse_p99: float
    speed_up: float
    num_seeds: int
    ratio: float

    @property
    def verdict(self) -> str:
        """`best`, `tie`, or how many times the least error."""
        if self.ratio == 1:
            return "best"
        return f"tie ({self.ratio:.2f} x)" if self.ratio < TIE else f"{short(self.ratio)} x"


def lines(cells: Sequence[Cell]) -> list[Line]:
    """Return a line per method and budget, budgets from the largest, within them the least error first."""
    groups: dict[tuple[float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.budget, cell.method), []).append(cell)
    means = {key: statistics.mean(cell.mse for cell in group) for key, group in groups.items()}
    found = []
    for (budget, method), group in groups.items():
        least = min(mean for (other, _), mean in means.items() if other == budget)
        mse = [cell.mse for cell in group]
        spread = standard_error(mse) if len(mse) > 1 else group[0].mse_standard_error
        found.append(
            Line(
                method,
                budget,
                statistics.mean(cell.evaluations_worth for cell in group),
                statistics.mean(mse),
                spread,
                statistics.mean(cell.mse_p99 for cell in group),
                statistics.mean(cell.uncached_seconds / cell.seconds for cell in group),
                len(group),
                means[budget, method] / least if least > 0 else 1.0,
            )
        )
    return sorted(found, key=lambda line: (-line.budget, line.mse))


def to_csv(cells: Sequence[Cell]) -> str:
    """Return every cell as comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(cells[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in cells)
    return text.getvalue()


def row_of(line: Line) -> tuple[str, ...]:
    """Return the cells of a line of the tables, in the order of `HEADER`."""
    return (
        f"{line.budget:g}",
        line.method,
        f"{line.evaluations_worth:.2f}",
        f"{short(1e5 * line.mse)} ± {short(1e5 * line.standard_error, 2)}",
        short(1e5 * line.mse_p99),
        line.verdict,
        f"{line.speed_up:.2f} x",
        str(line.num_seeds),
    )


def to_markdown(cells: Sequence[Cell]) -> str:
    """Return the lines as a Markdown table."""
    return markdown_table([HEADER, *map(row_of, lines(cells))])
