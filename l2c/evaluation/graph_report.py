"""A comparison as a table, pictures and numbers in a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

from l2c.calibration.cost import Cost
from l2c.evaluation.comparison import Comparison, Result
from l2c.evaluation.scores.scores import Scores
from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import replacing
from l2c.report.figures import graph_heatmap, save_figure
from l2c.report.machine import machine
from l2c.report.sample_figure import sample_figure
from l2c.report.table import markdown_table

HEADER = (
    "method",
    "evaluations",
    "layers removed",
    "MACs (evaluations)",
    "MACs",
    "seconds",
    "speed-up",
    "MSE x 1e-5",
    "PSNR dB",
    "accuracy",
    "Frechet",
)


def _cells(result: Result, cost: Cost) -> tuple[str, ...]:
    error = result.error
    exact = error.mse == 0
    return (
        result.method if result.num_draws == 1 else f"{result.method} (mean of {result.num_draws})",
        str(result.num_evaluations),
        f"{100 * result.removed:.1f} %",
        f"{result.evaluations_worth:.2f}",
        f"{result.evaluations_worth * cost.evaluation / 1e9:.4g} G",
        f"{result.latency.seconds:.3f}",
        f"{result.latency.speed_up:.2f} x",
        "0" if exact else f"{1e5 * error.mse:.2f} ± {1e5 * error.mse_standard_error:.2f}",
        "inf" if math.isinf(error.psnr) else f"{error.psnr:.1f}",
        "-" if result.accuracy is None else f"{100 * result.accuracy:.1f} %",
        "-" if result.frechet is None else f"{result.frechet:.3f}",
    )


def table(comparison: Comparison, cost: Cost) -> str:
    """Return the comparison as an aligned Markdown table."""
    rows = [HEADER, *(_cells(result, cost) for result in comparison.results)]
    return markdown_table(rows)


def scores_table(scores: Scores) -> str:
    """Return the figures of a set of images as an aligned Markdown table."""
    header = ("images", "real", "features", "FID", "sFID", "IS", "precision", "recall")
    missing = "-"
    return markdown_table(
        [
            header,
            (
                str(scores.num_images),
                missing if scores.num_real is None else str(scores.num_real),
                scores.features,
                f"{scores.fid:.3f}",
                missing if scores.sfid is None else f"{scores.sfid:.3f}",
                f"{scores.inception_score:.2f}",
                missing if scores.precision is None else f"{100 * scores.precision:.2f} %",
                missing if scores.recall is None else f"{100 * scores.recall:.2f} %",
            ),
        ]
    )


def write_report(folder: Path, graph: CacheGraph, comparison: Comparison, cost: Cost, *, command: str) -> Path:
    """Write `report.md`, `results.json`, `samples.png` and `graph.png`; return the report's path."""
    save_figure(sample_figure(comparison.samples, comparison.labels), folder / "samples.png")
    save_figure(graph_heatmap(graph), folder / "graph.png")
    results = {
        "command": command,
        "machine": machine(),
        "macs_per_evaluation": cost.evaluation,
        "results": [result.to_dict() for result in comparison.results],
    }
    with replacing(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    text = "\n".join(
        [
            f"# {graph.model}: {graph.solver}, {graph.num_evaluations} evaluations",
            "",
            table(comparison, cost),
            "",
            f"{comparison.results[0].error.num_images} images per method from the same noise; the error is that "
            f"against the uncached images. Seconds are those of one {comparison.seconds_for}, medians of "
            f"{comparison.results[0].latency.repetitions} alternated repetitions; MACs are per image and guidance "
            "branch. Decide on the error: accuracy and Frechet distance do not rank caching on small images.",
            "",
            f"Measured on {machine()} by `{command}`.",
            "",
            "![samples from the same noise](samples.png)",
            "",
            "![the cache graph](graph.png)",
            "",
            "```",
            graph.summary(),
            "```",
            "",
        ]
    )
    path = folder / "report.md"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
