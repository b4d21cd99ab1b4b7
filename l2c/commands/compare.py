"""Compare all methods at all budgets over seeds: one table, curves, pictures, one HTML report; resumable.

l2c compare model=dit_digits calibration=runs/calibrate/dit_digits.safetensors
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from tqdm.auto import tqdm

from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import configured_backbone
from l2c.commands.frame.settings import checked
from l2c.commands.frame.table import this_command_line
from l2c.diffusion import Guidance
from l2c.evaluation.comparison import Comparison
from l2c.evaluation.comparison_folder import ComparisonFolder, cell_name
from l2c.evaluation.comparison_settings import ODE_EVALUATIONS, ComparisonSettings
from l2c.evaluation.method_fit import check_for
from l2c.evaluation.method_settings import FEWER_STEPS
from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import write_text
from l2c.io.names import near_names
from l2c.policies.budget import evaluations_worth
from l2c.report.comparison_page import ComparisonPage, write_comparison_page
from l2c.report.figures import save_figure
from l2c.report.method_table import Cell, lines, to_csv, to_markdown
from l2c.report.samples import SampleRow

MEASURED = {
    "uncached": "uncached images",
    "ode": f"solution of the ODE, the images of the same solver with {ODE_EVALUATIONS} evaluations",
}


def method_names(cfg: DictConfig) -> list[str]:
    """Return the names of all methods and graphs, or refuse one that is in both."""
    chosen = [name for name, options in cfg.methods.items() if options is not False]
    graphs = list(cfg.graphs or {})
    both = [name for name in graphs if name in chosen]
    if both:
        raise ValueError(f"{both[0]!r} is both in methods and in graphs; give one of them another name")
    names: dict[str, str] = {}
    for name in (*chosen, *graphs):
        if (other := names.setdefault(cell_name(name, 0), name)) != name:
            raise ValueError(f"{other!r} and {name!r} would share their files; name them apart by letters or digits")
    return list(names.values())


def budgets_of(cfg: DictConfig) -> list[float]:
    """Return the budgets in evaluations' worth, or refuse two of one cost, which would count each method twice."""
    found: dict[str, Any] = {}
    count = cfg.solver.num_evaluations
    for budget in cfg.budgets:
        worth = evaluations_worth(budget, count)
        if worth > count:
            raise ValueError(
                f"budgets: {budget} is {worth:g} evaluations' worth of MACs, more than the {count} uncached; "
                "give a smaller one"
            )
        if (other := found.setdefault(cell_name("", worth), (budget, worth))) != (budget, worth):
            raise ValueError(
                f"budgets {other[0]} and {budget} both cost {worth:g} evaluations; leave one of them out"
            )
    return [worth for _, worth in found.values()]


def leave_out(cfg: DictConfig) -> None:
    """Leave out the methods and graphs that `only` does not name.

    Raises:
        ValueError: if it names one that there is not.

    """
    if cfg.only is None:
        return
    known = [*cfg.methods, *(cfg.graphs or {})]
    for name in cfg.only:
        if name not in known:
            raise ValueError(
                f"only names {name!r}, which is neither in methods nor in graphs; {near_names(name, known)}"
            )
    for name in set(cfg.methods) - set(cfg.only):
        cfg.methods[name] = False
    if cfg.graphs:
        cfg.graphs = {name: pattern for name, pattern in cfg.graphs.items() if name in cfg.only}


def kept_pictures(folder: ComparisonFolder, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the samples and graphs that a comparison's folder keeps of its cells, by budget."""
    samples: dict[float, list[SampleRow]] = {}
    graphs: dict[float, dict[str, CacheGraph]] = {}
    for line in lines(cells):  # the folder may hold other runs' too
        sample, graph = folder.drawn(cell_name(line.method, line.budget))
        if sample is not None:
            samples.setdefault(line.budget, []).append(sample.drawn_from(line.num_seeds))
        if graph is not None:
            graphs.setdefault(line.budget, {})[line.method] = graph
    return {"samples": samples, "graphs": graphs}


def comparison_page(
    cfg: DictConfig, name: str, guidance: Guidance, folder: ComparisonFolder, cells: Sequence[Cell]
) -> ComparisonPage:
    """Return the page of a model's cells, with what their folder keeps; methods of one policy share a line."""
    return ComparisonPage(
        name,
        {
            "model": name,
            "solver": f"{cfg.solver.name}, {cfg.solver.num_evaluations} evaluations uncached",
            "guidance": guidance.described,
            "noises": f"{cfg.num_images:,} (seed {cfg.seed}), never used in calibration",
            "machine": folder.machines,
            "command": this_command_line(),
        },
        cells,
        **kept_pictures(folder, cells),
        family_of={method: str(options.get("policy", method)) for method, options in cfg.methods.items() if options},
        always=[FEWER_STEPS, *(cfg.graphs or {})],
        measured_to=MEASURED[cfg.measured_to],
    )


@cli.entry("compare")
def main(cfg: DictConfig) -> None:
    """Measure what is missing, write the reports."""
    leave_out(cfg)
    check = checked("compare", cfg)
    assert isinstance(check.top, ComparisonSettings)
    names, budgets = method_names(cfg), budgets_of(cfg)
    folder = cli.run_folder()
    backbone = configured_backbone(cfg.model, cfg.solver, fewer_steps=FEWER_STEPS in cfg.methods)
    comparison = Comparison(backbone, check.groups["solver"], check.top, folder)
    comparison.check_calibrations()
    check_for(check.top.chosen, comparison.context, seed=check.top.seed, measured_to=check.top.measured_to)
    comparison.kept.claim(comparison.settings)
    cells: list[Cell] = []
    with tqdm(total=len(names) * len(budgets), desc="comparing", unit="cell") as bar:
        for worth in budgets:
            for name in names:
                bar.set_postfix_str(f"{name} {worth:g}")
                for seed, draw in enumerate(comparison.draws(name, worth)):
                    cells += comparison.measure(name, worth, seed, draw)
                bar.update()
    if not cells:
        raise ValueError("no method reaches any of the budgets; raise them")
    text = to_markdown(cells)
    name = comparison.backbone.conventions.name
    kept = comparison.kept
    note = (
        f"{name}: {cfg.num_images} noises (seed {cfg.seed}) never used in calibration; the error is that against "
        f"the {MEASURED[cfg.measured_to]}; ratios under 1.5 are ties. Measured on {kept.machines}.{kept.versions}"
    )
    for file, content in (("table.md", f"{note}\n\n{text}\n"), ("table.csv", to_csv(cells))):
        write_text(folder / file, content)
    page = comparison_page(cfg, name, comparison.uncached.guidance, kept, cells)
    figure = page.curves()
    for suffix in ("png", "svg"):
        save_figure(figure, folder / f"pareto.{suffix}")
    report = write_comparison_page(folder, page)
    print(f"{text}\n\nreport: {report}")


if __name__ == "__main__":
    main()
