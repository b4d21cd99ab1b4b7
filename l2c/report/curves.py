"""Curves of error against cost: a few families labelled at their ends, the other methods grey."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from l2c.report.decisions import printable, wrapped
from l2c.report.method_table import Cell, Line, lines

MOST_FAMILIES = 7
COLOURS = ("#0b6fb8", "#d1495b", "#2e8b57", "#8a5cb8", "#c77700", "#00868b", "#5b5b5b")
MARKERS = "osD^vP*"
GREY = "#c4c4c4"
HEIGHT = 4.4  # inches of an axis, nearly
APART = 13.0  # points between two labels at the ends of lines
SPEED_UPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20)
Points = list[tuple[float, float, float]]  # cost, error, its standard error


@dataclass(frozen=True)
class Family:
    """Methods that are drawn as one line, the best of them at each budget.

    Attributes:
        name: written at the end of the line.
        lines: one per budget, from the largest.

    """

    name: str
    lines: tuple[Line, ...]


def families(
    found: Sequence[Line],
    family_of: Mapping[str, str] | None = None,
    most: int = MOST_FAMILIES,
    always: Sequence[str] = (),
) -> list[Family]:
    """Return the families to label, the best first: those whose error is least beside the best of each budget.

    Args:
        found: the lines of all methods.
        family_of: method to family; a method without one is a family of its own.
        most: largest number of families.
        always: families that are labelled before others, however large their errors are.

    """
    best: dict[str, dict[float, Line]] = {}
    for line in found:
        name = (family_of or {}).get(line.method, line.method)
        of_family = best.setdefault(name, {})
        if line.mse > 0 and (line.budget not in of_family or line.mse < of_family[line.budget].mse):
            of_family[line.budget] = line
    budgets = len({line.budget for line in found})

    def rank(name: str) -> tuple[int, float]:
        ratios = [math.log(max(line.ratio, 1.0)) for line in best[name].values()]
        return budgets - len(ratios), sum(ratios) / len(ratios)  # those at every budget first

    ranked = sorted((name for name in best if best[name]), key=rank)
    kept = set(sorted(ranked, key=lambda name: name not in always)[:most])
    return [Family(name, tuple(best[name].values())) for name in ranked if name in kept]


def pareto(
    cells: Sequence[Cell],
    *,
    family_of: Mapping[str, str] | None = None,
    most: int = MOST_FAMILIES,
    always: Sequence[str] = (),
    measured_to: str = "uncached images",
) -> Figure:
    """Draw error against MACs and against measured time.

    Labelled are the families with the least errors; other methods are thin grey lines. Bars are standard errors
    over seeds, of a single seed over noises. Dashed lines are the budgets asked for.

    Args:
        cells: measurements of methods at budgets.
        family_of: method to family; a method without one is a family of its own.
        most: labelled families at most, up to 7.
        always: families that are labelled before others, however large their errors are.
        measured_to: what errors are the distance to; words after a comma are left out.

    """
    found = lines(cells)
    chosen = families(found, family_of, min(most, MOST_FAMILIES), always)
    drawn = {line.method for family in chosen for line in family.lines}
    figure = Figure(figsize=(12, 5), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    of_cost: Sequence[Callable[[Line], float]] = (lambda line: line.evaluations_worth, lambda line: 1 / line.speed_up)
    for axis, cost in zip(axes, of_cost, strict=True):
        others = {line.method for line in found} - drawn
        for method in sorted(others):
            _line(axis, _points([line for line in found if line.method == method], cost), GREY, "", 0.8)
        for i, family in enumerate(chosen):
            _line(axis, _points(family.lines, cost), COLOURS[i], MARKERS[i], 1.5)
        _scale(axis)
        ends = {family.name: _points(family.lines, cost)[0] for family in chosen}
        _label_ends(axis, ends, {family.name: COLOURS[i] for i, family in enumerate(chosen)})
    for budget in sorted({line.budget for line in found}):
        mark_budget(axes[0], budget, budget_label(budget), above=True)
    axes[0].set_ylabel(f"mean squared error to the {measured_to.partition(',')[0]}, x 1e-5")
    axes[0].set_xlabel("cost: MACs, in evaluations of the uncached network")
    axes[1].set_xlabel("time, as a share of the uncached sampler's")
    if others:
        text = f"grey: {len(others)} other methods, see the table" if len(others) > 1 else f"grey: {min(others)}"
        axes[1].annotate(
            printable(text), (0.99, 0.01), xycoords="axes fraction", ha="right", fontsize=8, color="#777777"
        )
    return figure


def budget_label(worth: float) -> str:
    """Return a budget, evaluations' worth of MACs, in words."""
    return f"budget {worth:g}"


def mark_budget(axis: Axes, cost: float, label: str, *, above: bool = False) -> None:
    """Draw a vertical line at a budget, with its label along it or, slanted, above the axis."""
    axis.axvline(cost, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axis.annotate(
        label,
        (cost, 1.0 if above else 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(-2, 2) if above else (-3, 0),
        textcoords="offset points",
        rotation=30 if above else 90,
        ha="left" if above else "right",
        va="bottom" if above else "top",
        rotation_mode="anchor" if above else "default",
        fontsize=7,
        color="#777777",
    )


def _points(of: Sequence[Line], cost: Callable[[Line], float]) -> Points:
    """Return cost, error and standard error x 1e-5 of lines with an error above 0, the cheapest first."""
    return sorted((cost(line), 1e5 * line.mse, 1e5 * line.standard_error) for line in of if line.mse > 0)


def _line(axis: Axes, points: Points, colour: str, marker: str, width: float) -> None:
    """Draw a line with its error bars, which end above 0 so that a logarithmic axis can show them."""
    if not points:
        return
    cost, error, spread = map(list, zip(*points, strict=True))
    below = [min(s, 0.9 * e) if math.isfinite(s) else 0.0 for s, e in zip(spread, error, strict=True)]
    above = [s if math.isfinite(s) else 0.0 for s in spread]
    axis.errorbar(
        cost,
        error,
        yerr=[below, above] if marker else None,
        color=colour,
        marker=marker or None,
        markersize=5,
        linewidth=width,
        elinewidth=1,
        capsize=2,
        zorder=3 if marker else 1,
    )


def _scale(axis: Axes) -> None:
    """Make both axes logarithmic, with plain numbers."""
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    for one in (axis.xaxis, axis.yaxis):
        low, high = one.get_view_interval()
        decades = math.log10(high / low) if low > 0 else 1.0
        subs = (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8) if decades > 0.4 else tuple(range(1, 10))
        if decades > 3:
            subs = (1,)
        one.set_major_locator(LogLocator(subs=subs, numticks=20))
        one.set_major_formatter(plain)
        one.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def moved_apart(places: Sequence[float], gap: float) -> list[float]:
    """Return ascending places moved as little as needed for a gap between neighbours; crowds stay centred."""
    crowds: list[list[float]] = []  # each: the sum of where its members want its first one to be, how many they are
    for place in places:
        crowds.append([place, 1])
        while len(crowds) > 1:
            (before, many), (after, few) = crowds[-2:]
            if before / many + many * gap <= after / few:
                break
            crowds[-2:] = [[before + after - few * many * gap, many + few]]
    return [total / count + i * gap for total, count in crowds for i in range(int(count))]


def _label_ends(axis: Axes, ends: Mapping[str, tuple[float, float, float]], colours: Mapping[str, str]) -> None:
    """Write names left of the cheapest points of their lines, moved apart where they would touch."""
    low, high = axis.get_xlim()
    longest = max((len(name) for name in ends), default=0)
    axis.set_xlim(low * (low / high) ** min(1.2, 0.022 * longest), high)  # room on the left
    bottom, top = axis.get_ylim()
    per_decade = 72 * HEIGHT / math.log10(top / bottom)
    ordered = sorted(ends.items(), key=lambda item: item[1][1])
    own = [per_decade * math.log10(error / bottom) for _, (_, error, _) in ordered]
    for (name, (cost, error, _)), at, place in zip(ordered, own, moved_apart(own, APART), strict=True):
        axis.annotate(
            printable(name),
            (cost, error),
            xytext=(-12, place - at),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8.5,
            color=colours[name],
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            if abs(place - at) > 2
            else None,
        )


def budget_curve(
    worth: Sequence[float],
    errors: Sequence[float],
    *,
    num_evaluations: int,
    title: str,
    spread: Sequence[float] | None = None,
    budgets: Sequence[float] = (),
    marked: Mapping[str, float] | None = None,
    ylabel: str = "predicted mean squared error",
) -> Figure:
    """Draw error against budget for a ladder of graphs of one calibration.

    Args:
        worth: MACs of each graph, in evaluations.
        errors: mean squared error of each graph to the uncached images; not drawn where it is 0 or not finite.
        num_evaluations: length of the uncached trajectory; the upper axis shows the speed-up by MACs.
        title: over the picture; wrapped.
        spread: standard error of each error; None = no bars.
        budgets: evaluations' worth to mark with vertical lines.
        marked: words to write at the graph whose MACs are nearest to a number, for one {"half": 10.0}.
        ylabel: name of the errors; ` x 1e-5` is added.

    Raises:
        ValueError: if the lists differ in length, or no error can be drawn on a logarithmic axis.

    """
    bars = list(spread) if spread is not None else [0.0] * len(worth)
    if not len(worth) == len(errors) == len(bars):
        raise ValueError(
            f"give one error per graph, got {len(worth)} costs, {len(errors)} errors, {len(bars)} spreads; "
            "leave out what has none"
        )
    together = zip(worth, errors, bars, strict=True)
    points = sorted((float(w), 1e5 * float(e), 1e5 * float(s)) for w, e, s in together if math.isfinite(e) and e > 0)
    if not points:
        raise ValueError(f"no error above 0 to draw among {len(errors)} graphs; choose smaller budgets")
    figure = Figure(figsize=(7, 4.4), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    _line(axis, points, COLOURS[0], MARKERS[0], 1.5)
    _scale(axis)
    for budget in budgets:
        mark_budget(axis, budget, budget_label(budget))
    for words, near in (marked or {}).items():
        cost, error, _ = min(points, key=lambda point: abs(point[0] - near))
        axis.annotate(
            printable(words), (cost, error), xytext=(6, 6), textcoords="offset points", fontsize=8, parse_math=False
        )
    upper = axis.twiny()
    upper.set_xscale("log")
    upper.set_xlim(axis.get_xlim())
    low, high = axis.get_xlim()
    shown = [times for times in SPEED_UPS if low < num_evaluations / times < high]
    upper.set_xticks([num_evaluations / times for times in shown], [f"{times:g} x" for times in shown], fontsize=8)
    upper.set_xticks([], minor=True)
    upper.set_xlabel("speed-up that the MACs allow", fontsize=8)
    axis.set_xlabel(f"MACs, in evaluations (uncached: {num_evaluations})")
    axis.set_ylabel(f"{ylabel} x 1e-5")
    figure.suptitle(wrapped(title, 6.8), fontsize=10, x=0.01, ha="left", parse_math=False)
    return figure
