"""Compare all methods at all budgets over seeds: one table, curves, pictures, one HTML report; resumable.

python scripts/compare.py model=dit_digits statistics=runs/calibrate/dit_digits.safetensors
"""

import json

import torch
from omegaconf import DictConfig
from tqdm.auto import tqdm

from l2c.commands import entry as cli
from l2c.commands.backends import configured_backbone
from l2c.commands.settings import checked
from l2c.evaluation.tournament import Tournament, cell_name
from l2c.evaluation.tournament_settings import FEWER_STEPS, TournamentSettings
from l2c.io.atomic import replacing
from l2c.io.names import near_names
from l2c.policies.registry import POLICIES, check_options
from l2c.report.figures import save_figure
from l2c.report.html import html_report
from l2c.report.machine import machine
from l2c.report.method_table import Cell, to_csv, to_markdown
from l2c.report.pareto import pareto


def method_names(cfg: DictConfig) -> list[str]:
    """Return the names of all methods, or refuse an unknown one."""
    known = [FEWER_STEPS, *POLICIES]
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
        if policy != FEWER_STEPS:
            check_options(policy, map(str, options))
    graphs = list(cfg.graphs or {})
    both = [name for name in graphs if name in chosen]
    if both:
        raise ValueError(f"{both[0]!r} is both in methods and in graphs; give one of them another name")
    return [*chosen, *graphs]


@cli.entry("compare")
def main(cfg: DictConfig) -> None:
    """Measure what is missing, write the reports."""
    names = method_names(cfg)
    check = checked("compare", cfg)
    assert isinstance(check.top, TournamentSettings)
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    folder = cli.run_folder()
    backbone = configured_backbone(cfg.model, cfg.solver, fewer_steps=FEWER_STEPS in cfg.methods)
    tournament = Tournament(backbone, check.groups["solver"], check.top, folder)
    tournament.check_statistics()
    settings = json.dumps(tournament.settings, default=str)
    record = folder / "settings.json"
    if record.is_file() and record.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{folder} holds a comparison with other settings; choose another with hydra.run.dir=PATH")
    with replacing(record) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    cells: list[Cell] = []
    with tqdm(total=len(names) * len(cfg.targets), desc="comparing", unit="cell") as bar:
        for target in cfg.targets:
            for name in names:
                bar.set_postfix_str(f"{name} {target:g}")
                for seed, draw in enumerate(tournament.draws(name, float(target))):
                    cells += tournament.measure(name, float(target), seed, draw)
                bar.update()
    if not cells:
        raise ValueError("no method reaches any of the targets; raise them")
    text = to_markdown(cells)
    name = tournament.backbone.conventions.name
    note = (
        f"{name}: {cfg.num_images} noises (seed {cfg.seed}) never used in calibration; the error is that "
        f"against the uncached images; ratios under 1.5 are ties. Measured on {machine()}."
    )
    for file, content in (("table.md", f"{note}\n\n{text}\n"), ("table.csv", to_csv(cells))):
        with replacing(folder / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    figure = pareto(cells)
    for suffix in ("png", "svg"):
        save_figure(figure, folder / f"pareto.{suffix}")
    pictures = {"error against cost": folder / "pareto.png"}
    measured = sorted({cell_name(cell.method, cell.target) for cell in cells})  # the folder may hold other runs' too
    for kind in ("samples", "graphs"):
        paths = [folder / kind / f"{stem}.png" for stem in measured]
        pictures |= {f"{kind}: {path.stem}": path for path in paths if path.is_file()}
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(html_report(f"Caching {name}", cells, pictures, note), encoding="utf-8")
    print(f"{text}\n\nreport: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
