"""Speeds as a table, a picture and numbers in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from l2c.calibration.cost import Cost
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import SPEED_UP
from l2c.io.atomic import write_json, write_text
from l2c.report.decisions import wrapped
from l2c.report.figures import COMPUTED, REUSED, save_figure
from l2c.report.machine import machine
from l2c.report.table import markdown_table
from l2c.speed.bench import PUBLISHED, Speed

HEADER = (
    "batch",
    "precision",
    "matmul",
    "run",
    "uncached s",
    "cached s",
    "speed-up",
    "efficiency",
    "images/s",
    "cache MB (predicted, every output)",
    "error",
)


def speed_table(speeds: Sequence[Speed]) -> str:
    """Return the speeds as a Markdown table; where the published scheme is among them, with times over its own."""
    published = next((speed for speed in speeds if speed.setting.mode == PUBLISHED), None)
    header = HEADER if published is None else (*HEADER, "cached / published cached")
    rows = [header]
    for speed in speeds:
        setting = speed.setting
        megabytes = [n / 1e6 for n in (speed.cache_bytes, speed.predicted_bytes, speed.every_output_bytes)]
        row = (
            str(setting.batch_size),
            setting.precision,
            setting.matmul,
            setting.mode,
            f"{speed.uncached:.4g}",
            f"{speed.cached:.4g}",
            f"{speed.speed_up:.3f} ± {speed.spread:.3f}",
            f"{speed.efficiency:.3f}",
            f"{speed.images_per_second:.3g}",
            "{:.1f} ({:.1f}, {:.1f})".format(*megabytes),
            f"{speed.error:.1e}",
        )
        same = [s for s in speeds if s.setting.mode == PUBLISHED and s.setting.batch_size == setting.batch_size]
        rows.append(row if published is None else (*row, _over(speed, same)))
    return markdown_table(rows)


def _over(speed: Speed, published: Sequence[Speed]) -> str:
    """Return a cached time over the published scheme's, by its products where there are several."""
    shown = [f"{speed.cached / r.cached:.3f} ({r.setting.precision}, {r.setting.matmul})" for r in published]
    return ", ".join(shown) or "-"


def evaluations_table(speeds: Sequence[Speed]) -> str:
    """Return the seconds of each evaluation, uncached / cached, as a Markdown table with a column per way to run."""
    names = [f"{s.setting.mode} {s.setting.precision} {s.setting.matmul} x{s.setting.batch_size}" for s in speeds]
    rows = [("evaluation", *names)]
    for e in range(len(speeds[0].by_evaluation)):
        pairs = [speed.by_evaluation[e] for speed in speeds]
        rows.append((str(e), *(f"{uncached:.3f} / {cached:.3f}" for uncached, cached in pairs)))
    return markdown_table(rows)


def evaluations_figure(speed: Speed, cost: Cost, graph: CacheGraph) -> Figure:
    """Draw the time of each evaluation, with and without the graph, beside what the MACs say."""
    uncached, cached = zip(*speed.by_evaluation, strict=True)
    figure = Figure(figsize=(7.5, 3.2), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    places = range(len(cached))
    axis.bar(places, uncached, color=REUSED, width=0.8, label="uncached")
    axis.bar(places, cached, color=COMPUTED, width=0.8, label="cached")
    said = [u * macs / cost.evaluation for u, macs in zip(uncached, cost.of_evaluations(graph), strict=True)]
    axis.plot(places, said, "_", color="white", markersize=9, markeredgewidth=1.6)
    axis.plot(places, said, "_", color="crimson", markersize=9, markeredgewidth=1.0, label="as the MACs say")
    axis.set_xlabel("evaluation, noise first")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("seconds")
    setting = speed.setting
    title = f"{graph.model}, batch {setting.batch_size}, {setting.precision}, {setting.mode}"
    words = wrapped(f"{title}: efficiency {speed.efficiency:.3f}", 6.6)
    axis.set_title(words, fontsize=10, loc="left", parse_math=False)
    axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return figure


def write_speed_report(
    folder: Path, graph: CacheGraph, cost: Cost, speeds: Sequence[Speed], *, command: str, notes: Sequence[str]
) -> Path:
    """Write `report.md`, `results.json` and, of timed evaluations, `evaluations.png`; return the report's path."""
    timed = [speed for speed in speeds if speed.by_evaluation]
    drawn = [speed for speed in timed if speed.setting.mode != PUBLISHED]
    content = {
        "command": command,
        "machine": machine(),
        "cuda": torch.version.cuda,
        SPEED_UP: cost.speed_up(graph),
        "rows": ["".join("01"[bit] for bit in row) for row in graph.rows],
        "results": [speed.to_dict() for speed in speeds],
        "notes": list(notes),
    }
    write_json(folder / "results.json", content)  # first: it says whose the others are
    if drawn:
        save_figure(evaluations_figure(drawn[-1], cost, graph), folder / "evaluations.png")
    lines = [
        f"# Speed of {graph.model}: {graph.solver}, {graph.num_evaluations} evaluations",
        "",
        f"The MACs allow {cost.speed_up(graph):.4f} x: {cost.evaluations_worth(graph):.2f} evaluations' worth of "
        f"{graph.num_evaluations}.",
        "",
        speed_table(speeds),
        "",
        "Seconds are those of one trajectory, sums of medians over alternated repetitions; ± is half the range "
        "between the quartiles of single repetitions. Efficiency is the measured speed-up over that of the MACs. "
        "The error is the root mean square difference of the cached images to those of the first line, over their "
        "own.",
        "",
        *notes,
        "",
        *([evaluations_table(timed), ""] if timed else []),
        f"Measured on {machine()} by `{command}`.",
        "",
        *(["![time of each evaluation](evaluations.png)", ""] if drawn else []),
    ]
    path = folder / "report.md"
    write_text(path, "\n".join(lines))
    return path
