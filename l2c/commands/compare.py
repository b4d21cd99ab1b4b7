"""Compare all methods at all budgets over seeds: one table, curves, pictures, one HTML report; resumable.

python scripts/compare.py model=dit_digits statistics=runs/calibrate/dit_digits.safetensors
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm.auto import tqdm

from l2c.commands import entry as cli
from l2c.evaluation.dynamic_methods import DYNAMIC
from l2c.evaluation.tournament import (
    BY_RESPONSES,
    FEWER_STEPS,
    ODE_EVALUATIONS,
    REFERENCES,
    Tournament,
    cell_name,
)
from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import replacing
from l2c.io.names import near_names
from l2c.policies.budget import evaluations_worth
from l2c.policies.registry import POLICIES, check_options
from l2c.report.comparison_page import ComparisonPage, write_comparison_page
from l2c.report.figures import save_figure
from l2c.report.machine import machine
from l2c.report.method_table import Cell, lines, to_csv, to_markdown
from l2c.report.samples import SampleRow

MEASURED = {
    "uncached": "uncached images",
    "ode": f"solution of the ODE, the images of the same solver with {ODE_EVALUATIONS} evaluations",
}


def check(cfg: DictConfig) -> list[str]:
    """Return the names of all methods, or refuse an unknown one."""
    known = [FEWER_STEPS, *POLICIES, *DYNAMIC]
    chosen = {name: options for name, options in cfg.methods.items() if options is not False}
    for method, given in chosen.items():
        if given is not None and not isinstance(given, DictConfig):
            raise ValueError(
                f"methods.{method} must be options, null for none or false to leave it out, got {given!r}"
            )
        options = dict(given or {})
        policy = options.pop("policy", method)
        if policy not in known:
            raise ValueError(f"unknown method {policy!r}; {near_names(policy, known)}")
        if policy in POLICIES:
            others = {} if policy not in BY_RESPONSES else {"solver"}
            check_options(policy, [str(option) for option in options if option not in others])
            if "solver" in options and cfg.reference != "ode":
                raise ValueError(
                    f"methods.{method} has another solver, whose images differ from the uncached ones; compare it by "
                    "the distance to the solution of the ODE: reference=ode"
                )
    graphs = list(cfg.graphs or {})
    both = [name for name in graphs if name in chosen]
    if both:
        raise ValueError(f"{both[0]!r} is both in methods and in graphs; give one of them another name")
    return [*chosen, *graphs]


def kept_pictures(folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the samples and graphs that a comparison's folder keeps of its cells, by budget."""
    samples: dict[float, list[SampleRow]] = {}
    graphs: dict[float, dict[str, CacheGraph]] = {}
    for line in lines(cells):  # the folder may hold other runs' too
        stem = cell_name(line.method, line.target)
        sample, graph = folder / "samples" / f"{stem}.safetensors", folder / "graphs" / f"{stem}.json"
        if sample.is_file():
            samples.setdefault(line.target, []).append(SampleRow.load(sample).drawn_from(line.num_seeds))
        if graph.is_file():
            graphs.setdefault(line.target, {})[line.method] = CacheGraph.load(graph)
    return {"samples": samples, "graphs": graphs}


def comparison_page(cfg: DictConfig, name: str, folder: Path, cells: Sequence[Cell]) -> ComparisonPage:
    """Return the page of a model's cells, with what their folder keeps; methods of one policy share a line."""
    return ComparisonPage(
        name,
        {
            "model": name,
            "solver": f"{cfg.solver.name}, {cfg.solver.num_evaluations} evaluations uncached",
            "noises": f"{cfg.num_images:,} (seed {cfg.seed}), never used in calibration",
            "machine": machine(),
            "command": " ".join(["python scripts/compare.py", *sys.argv[1:]]),
        },
        cells,
        **kept_pictures(folder, cells),
        family_of={method: str(options.get("policy", method)) for method, options in cfg.methods.items() if options},
        always=[FEWER_STEPS, *(cfg.graphs or {})],
    )


@cli.entry("compare")
def main(cfg: DictConfig) -> None:
    """Measure what is missing, write the reports."""
    if cfg.reference not in REFERENCES:
        raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, got {cfg.reference!r}")
    names = check(cfg)
    cli.check_positive(cfg, "num_images", "batch_size", "num_seeds", "timing_batch", "timing_repetitions")
    if cfg.num_images < 2:
        raise ValueError("num_images must be at least 2: one image has no standard error")
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    folder = cli.run_folder()
    tournament = Tournament(cfg, folder)
    tournament.check_statistics()
    settings = json.dumps(tournament.settings, default=str)
    record = folder / "settings.json"
    if record.is_file() and record.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{folder} holds a comparison with other settings; choose another with hydra.run.dir=PATH")
    with replacing(record) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    budgets = [evaluations_worth(budget, cfg.solver.num_evaluations) for budget in cfg.budgets]
    cells: list[Cell] = []
    with tqdm(total=len(names) * len(budgets), desc="comparing", unit="cell") as bar:
        for worth in budgets:
            for name in names:
                bar.set_postfix_str(f"{name} {worth:g}")
                for seed, draw in enumerate(tournament.draws(name, worth)):
                    cells += tournament.measure(name, worth, seed, draw)
                bar.update()
    if not cells:
        raise ValueError("no method reaches any of the budgets; raise them")
    text = to_markdown(cells)
    name = tournament.backbone.conventions.name
    note = (
        f"{name}: {cfg.num_images} noises (seed {cfg.seed}) never used in calibration; the error is that against "
        f"the {MEASURED[cfg.reference]}; ratios under 1.5 are ties. Measured on {machine()}."
    )
    for file, content in (("table.md", f"{note}\n\n{text}\n"), ("table.csv", to_csv(cells))):
        with replacing(folder / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    page = comparison_page(cfg, name, folder, cells)
    figure = page.curves()
    for suffix in ("png", "svg"):
        save_figure(figure, folder / f"pareto.{suffix}")
    report = write_comparison_page(folder, page)
    print(f"{text}\n\nreport: {report}")


if __name__ == "__main__":
    main()
