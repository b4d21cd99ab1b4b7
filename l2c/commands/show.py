"""Print what a cache graph does and draw it as a heat map, or draw error against budget of a calibration or ladder.

l2c show runs/demo/cache_graph.json output=graph.png
l2c show runs/calibrate/dit_digits.safetensors num_steps=30
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2c.commands.frame.arguments import Arguments
from l2c.commands.frame.table import command_line, python_line
from l2c.io.atomic import check_another, output_file
from l2c.io.bundled import graph_names, model_names
from l2c.io.json_fields import CALIBRATION, form_of
from l2c.io.names import shown
from l2c.report.own_results import is_drawn

if TYPE_CHECKING:
    from l2c.graph.cache_graph import CacheGraph
    from l2c.policies.ladder import Ladder

SUFFIXES = (".png", ".svg", ".pdf")
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
OPTIONS = ("output", "num_steps")


def main(arguments: Sequence[str]) -> None:
    """Load, print, draw."""
    parser = Arguments(
        "show",
        "Print what a cache graph does and draw it as a heat map (the graphs of two denoisers, one below the other); "
        "of a calibration or a ladder, draw error against budget.",
    )
    parser.add_argument(
        "graph",
        help=f"a cache_graph.json, the graphs of a pipeline with two denoisers, a bundled graph "
        f"({', '.join(graph_names())}), a ladder's or a calibration's file",
    )
    parser.add_argument(
        "options",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="output=PATH: the picture, by default NAME.png in the current folder; num_steps=N: evaluations of the "
        "graphs of a calibration, by default as many as were measured",
    )
    given = parser.parse_args(arguments)
    options = _options(given.options)
    name = given.graph.removeprefix("graph=")
    wanted = options.get("output") or f"{Path(name).stem}.png"
    check_another("output", wanted, graph=name)
    if Path(wanted).suffix not in SUFFIXES or wanted.endswith("/"):
        raise ValueError(f"a picture's name must end in .png, .svg or .pdf, got {shown(wanted)}")
    with output_file("output", wanted, ours=is_drawn) as output:
        form = form_of(name)
        calibration = form == CALIBRATION or name.endswith(".safetensors")
        text, use = _of_calibration(name, options, output) if calibration else _of_json(name, form, options, output)
    print(f"{text}\nnext: {use}")


def _use_of(graph: CacheGraph, name: str) -> str:
    """Return the command, or the line of Python, that uses a graph's file."""
    if graph.solver.endswith("Scheduler"):
        return python_line(name)
    if graph.model in model_names():
        return command_line("evaluate", graph=name)
    return f"l2c.Sampler(backbone, graph={name!r})"


def _options(given: Sequence[str]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in given]
    wrong = next((key + sep + value for key, sep, value in pairs if key not in OPTIONS or not sep), None)
    if wrong is not None:
        raise ValueError(
            f"unknown argument {wrong!r}; say output=PATH for the picture, num_steps=N for a calibration"
        )
    return {key: value for key, _, value in pairs}


def _of_json(name: str, form: str | None, options: dict[str, str], output: Path) -> tuple[str, str]:
    """Draw a graph as a heat map, or a ladder as error against budget; return it as text, and what uses it."""
    from l2c.graph import collection
    from l2c.graph.cache_graph import CacheGraph
    from l2c.policies import ladder

    if "num_steps" in options:
        raise ValueError("a graph has its number of evaluations; num_steps is for a calibration")
    if form == ladder.FORMAT:
        text = _of_ladder(ladder.Ladder.load(name), output)
        return text, f"l2c.Sampler(backbone, graph=l2c.Ladder.load({name!r}).rung(0.5))"
    from l2c.report.figures import graph_heatmap

    if form == collection.FORMAT:
        graphs = collection.CacheGraphs.load(name)
        drawn = _drawn(graph_heatmap(*graphs.values()), output)
        return f"{graphs.summary()}\n{drawn}", python_line(name, "CacheGraphs")
    graph = CacheGraph.load(name)
    return f"{graph.summary()}\n{_drawn(graph_heatmap(graph), output)}", _use_of(graph, name)


def _of_calibration(name: str, options: dict[str, str], output: Path) -> tuple[str, str]:
    """Draw the ladder of a calibration; return it as a table, and what uses the calibration."""
    from l2c.io.numbers import whole_number
    from l2c.policies.calibration import Calibration

    given = options.get("num_steps")
    if given is not None and not given.isdecimal():
        raise ValueError(f"num_steps must be a whole number of at least 2, got {given!r}")
    num_steps = None if given is None else whole_number("num_steps", int(given), low=2)
    calibration = Calibration.load(name)
    ladder = calibration.reachable(SHARES, num_steps=num_steps)
    text = _of_ladder(ladder, output)
    return text, f"l2c.Calibration.load({name!r}).graph(0.5)"


def _of_ladder(ladder: Ladder, output: Path) -> str:
    """Draw expected error against budget, where one is known; return it as a table."""
    from l2c.graph.statistics import ERROR, SPREAD, UNKNOWN, WORTH
    from l2c.report.curves import budget_curve

    first, count, errors = ladder[0], ladder[0].num_evaluations, ladder.figures(ERROR)
    head = f"{shown(first.model)}, {first.solver}, {count} evaluations; expected squared error x 1e-5"
    if not any(error > 0 for error in errors):  # NaN, for unknown, is not
        reasons = (shown(graph.measured[UNKNOWN], 300) for graph in ladder if UNKNOWN in graph.measured)
        why = next(reasons, "the file gives none above 0")
        return f"{head}\n{ladder.summary()}\nno picture, since there is no error to draw: {why}"
    figure = budget_curve(
        ladder.figures(WORTH),
        errors,
        num_evaluations=count,
        title=f"{first.model}: {count} evaluations, expected error of its graphs",
        spread=ladder.figures(SPREAD),
        ylabel="expected squared error",
    )
    return f"{head}\n{ladder.summary()}\n{_drawn(figure, output)}"


def _drawn(figure: Any, output: Path) -> str:
    """Write a picture; say so."""
    from l2c.report.figures import save_figure

    save_figure(figure, output)
    return f"wrote {output}"
