"""Print what a cache graph does and draw it as a heat map, or draw error against budget of a calibration.

l2c show runs/demo/cache_graph.json output=graph.png
l2c show runs/calibrate/dit_digits.safetensors num_steps=30
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from l2c.commands.frame.table import spelled
from l2c.io.bundled import graph_names

CALIBRATION = ".safetensors"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
OPTIONS = ("output", "num_steps")


def main(arguments: Sequence[str]) -> None:
    """Load, print, draw."""
    parser = argparse.ArgumentParser(
        prog=spelled("show"),
        description="Print what a cache graph does and draw it as a heat map; of a calibration, draw error against "
        "budget.",
    )
    parser.add_argument(
        "graph", help=f"a cache_graph.json, a bundled graph ({', '.join(graph_names())}) or a calibration's file"
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="KEY=VALUE",
        help="output=PATH: the picture, by default NAME.png in the current folder; num_steps=N: evaluations of the "
        "graphs of a calibration, by default as many as were measured",
    )
    given = parser.parse_args(arguments)
    try:
        options = _options(given.options)
        name = given.graph.removeprefix("graph=")
        output = Path(options.get("output") or f"{Path(name).stem}.png")
        if output.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"a picture's name must end in .png, .svg or .pdf, got {output}")
        text = (
            _of_calibration(name, options, output) if name.endswith(CALIBRATION) else _of_graph(name, options, output)
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{text}\nwrote {output}")


def _options(given: Sequence[str]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in given]
    wrong = next((key + sep + value for key, sep, value in pairs if key not in OPTIONS or not sep), None)
    if wrong is not None:
        raise ValueError(
            f"unknown argument {wrong!r}; say output=PATH for the picture, num_steps=N for a calibration"
        )
    return {key: value for key, _, value in pairs}


def _of_graph(name: str, options: dict[str, str], output: Path) -> str:
    from l2c.graph.cache_graph import CacheGraph

    if "num_steps" in options:
        raise ValueError("a graph has its number of evaluations; num_steps is for a calibration")
    graph = CacheGraph.load(name)
    from l2c.report.figures import graph_heatmap, save_figure

    save_figure(graph_heatmap(graph), output)
    return graph.summary()


def _of_calibration(name: str, options: dict[str, str], output: Path) -> str:
    """Draw the ladder of a calibration; return it as a table."""
    from l2c.io.numbers import whole_number
    from l2c.policies.calibration import Calibration

    text = options.get("num_steps")
    if text is not None and not text.isdecimal():
        raise ValueError(f"num_steps must be a whole number of at least 2, got {text!r}")
    num_steps = None if text is None else whole_number("num_steps", int(text), low=2)
    calibration = Calibration.load(name)
    ladder = calibration.reachable(SHARES, num_steps=num_steps)
    from l2c.report.curves import budget_curve
    from l2c.report.figures import save_figure

    figures = [graph.measured for graph in ladder]
    worth = [figure["evaluations_worth_of_macs"] for figure in figures]
    errors = [figure["expected_mse"] for figure in figures]
    spread = [figure["expected_mse_standard_error"] for figure in figures]
    count = ladder[0].num_evaluations
    how = "expected" if calibration.corrections else "first-order"
    title = f"{calibration.binding.model}: {count} evaluations, {how} error of its graphs"
    figure = budget_curve(
        worth, errors, num_evaluations=count, title=title, spread=spread, ylabel=f"{how} squared error"
    )
    save_figure(figure, output)
    lines = [f"{calibration.binding.model}, {ladder[0].solver}, {count} evaluations; {how} squared error x 1e-5"]
    for cost, error, one in zip(worth, errors, spread, strict=True):
        lines.append(f"{cost:8.2f} evaluations' worth {count / cost:6.2f} x  {1e5 * error:.3g} +- {1e5 * one:.2g}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
