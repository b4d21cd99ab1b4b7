"""The evaluation of one graph with baselines, in a folder: a table, pictures, numbers, a page."""

from __future__ import annotations

import math
from pathlib import Path

from l2c.calibration.cost import Cost
from l2c.evaluation.graph_evaluation import GraphEvaluation, Result
from l2c.evaluation.scores.scores import Scores
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import MACS
from l2c.io.atomic import write_json, write_text
from l2c.io.names import counted
from l2c.report.figures import graph_heatmap, save_figure
from l2c.report.machine import machine
from l2c.report.page import Column, Section, TableCell, page_html, paragraph, table_html, write_page
from l2c.report.page_graph import graph_html
from l2c.report.page_samples import samples_html
from l2c.report.sample_figure import sample_figure
from l2c.report.table import markdown_table

COLUMNS = (
    Column("method", "How the images were made; the others are compared with uncached.", True),
    Column("evaluations", "Calls of the network in a trajectory."),
    Column("layers removed", "Share of the layers of all evaluations that are not computed but reused."),
    Column("MACs (evaluations)", "Multiply-accumulate operations over those of one full evaluation."),
    Column("MACs", "Multiply-accumulate operations of a trajectory, per image and guidance branch."),
    Column("seconds", "Wall-clock time of one batch, the median of alternated repetitions."),
    Column("speed-up", "Time of the uncached sampler over that of the method."),
    Column("MSE x 1e-5", "Mean squared error per pixel to the uncached images, with its standard error."),
    Column("99 % under", "The error x 1e-5 that 99 % of the images stay under."),
    Column("PSNR dB", "Peak signal-to-noise ratio of that error."),
    Column("accuracy", "Share of images that a classifier reads as their label; where there is a classifier."),
    Column("Frechet", "Frechet distance of the classifier's features to those of real images."),
)
HEADER = tuple(column.name for column in COLUMNS)
ADVICE = "Decide on the error: accuracy and Frechet distance do not rank caching on small images."


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
        "0" if exact else f"{1e5 * error.mse_p99:.2f}",
        "inf" if math.isinf(error.psnr) else f"{error.psnr:.1f}",
        "-" if result.accuracy is None else f"{100 * result.accuracy:.1f} %",
        "-" if result.frechet is None else f"{result.frechet:.3f}",
    )


def _orders(result: Result) -> tuple[float | None, ...]:
    """Return the number that each column of a result is sorted by."""
    return (
        None,
        result.num_evaluations,
        result.removed,
        result.evaluations_worth,
        result.evaluations_worth,
        result.latency.seconds,
        result.latency.speed_up,
        result.error.mse,
        result.error.mse_p99,
        result.error.psnr if math.isfinite(result.error.psnr) else 1e9,
        -1.0 if result.accuracy is None else result.accuracy,
        -1.0 if result.frechet is None else result.frechet,
    )


def table(evaluation: GraphEvaluation, cost: Cost) -> str:
    """Return the evaluation as an aligned Markdown table."""
    rows = [HEADER, *(_cells(result, cost) for result in evaluation.results)]
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


def graph_page(graph: CacheGraph, evaluation: GraphEvaluation, cost: Cost, *, command: str) -> str:
    """Return the page of a graph and its baselines as HTML."""
    results = evaluation.results
    rows = [
        [TableCell(*pair) for pair in zip(_cells(result, cost), _orders(result), strict=True)] for result in results
    ]
    lead = (
        f"The graph says which layers of {graph.model} are computed and which are reused at each evaluation. It is "
        "compared with the uncached sampler and with baselines of about the same cost, all from the same noises. "
        "The error is the distance to the uncached images, so 0 is perfect."
    )
    facts = {
        "model": graph.model,
        "solver": f"{graph.solver}, {graph.num_evaluations} evaluations",
        "guidance": evaluation.guidance,
        "noises": f"{results[0].error.num_images:,} per method, the same for all",
        "timed": f"one {evaluation.seconds_for}, {counted(results[0].latency.repetitions, 'alternated repetition')}",
        "machine": machine(),
        "command": command,
    }
    sections = [
        Section("Table", table_html(COLUMNS, rows) + paragraph(ADVICE)),
        Section("Pictures", samples_html(evaluation.samples)),
        Section("The graph", graph_html(graph, "What is computed and what is reused")),
    ]
    return page_html(f"A cache graph of {graph.model}", lead, facts, sections)


def write_report(folder: Path, graph: CacheGraph, evaluation: GraphEvaluation, cost: Cost, *, command: str) -> Path:
    """Write `report.html`, `report.md`, `results.json`, `samples.png` and `graph.png`.

    Returns:
        Path of `report.md`.

    """
    results = {
        "command": command,
        "machine": machine(),
        MACS: cost.evaluation,
        "results": [result.to_dict() for result in evaluation.results],
    }
    write_json(folder / "results.json", results, allow_nan=False)  # first: it says whose the others are
    write_page(folder / "report.html", graph_page(graph, evaluation, cost, command=command))
    save_figure(sample_figure(evaluation.samples, evaluation.labels), folder / "samples.png")
    save_figure(graph_heatmap(graph), folder / "graph.png")
    text = "\n".join(
        [
            f"# {graph.model}: {graph.solver}, {graph.num_evaluations} evaluations",
            "",
            table(evaluation, cost),
            "",
            f"{evaluation.results[0].error.num_images} images per method from the same noise; the error is that "
            f"against the uncached images. Seconds are those of one {evaluation.seconds_for}, medians of "
            f"{counted(evaluation.results[0].latency.repetitions, 'alternated repetition')}; MACs are per image and "
            f"guidance branch. {ADVICE}",
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
    write_text(path, text)
    return path
