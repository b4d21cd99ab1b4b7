"""Compare all methods at all budgets over seeds: one table, curves, pictures, one HTML report; resumable.

python scripts/compare.py model=dit_digits statistics=runs/calibrate/dit_digits.safetensors
"""

import json
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm.auto import tqdm

from l2c import cli
from l2c.atomic import replacing
from l2c.backbones.zoo import load_backbone, near_names
from l2c.evaluation.comparison import sample_many
from l2c.evaluation.figures import graph_heatmap, sample_grid, save_figure
from l2c.evaluation.html_report import html_report
from l2c.evaluation.latency import alternate
from l2c.evaluation.method_table import Cell, to_csv, to_markdown
from l2c.evaluation.metrics import image_error
from l2c.evaluation.pareto import pareto
from l2c.evaluation.report import machine
from l2c.graph import CacheGraph
from l2c.policies.calibration import Calibration
from l2c.policies.problem import Problem
from l2c.policies.zoo import POLICIES, make_graph
from l2c.sampling.sampler import Sampler, seeded_noise

FEWER_STEPS = "fewer_steps"
NEAR = 0.2  # a trained graph belongs to a budget if its MACs are this near, in evaluations


class Comparison:
    """The samplers and noises that all cells share, and the folder that remembers finished cells."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg = cfg
        self.folder = folder
        self.backbone = load_backbone(cfg.model)
        self.uncached = self.plain(cfg.solver.num_evaluations)
        calibration = None if cfg.statistics is None else Calibration.load(cfg.statistics)
        self.problem = Problem.of(self.uncached, calibration)
        self.noise = seeded_noise(self.backbone.input_shape, cfg.seed, cfg.num_images)
        count = self.backbone.num_labels
        self.labels = torch.arange(cfg.num_images) % count if count else None
        self._reference: torch.Tensor | None = None

    def plain(self, num_evaluations: int) -> Sampler:
        """Return an uncached sampler."""
        solver = self.cfg.solver
        return Sampler(
            self.backbone,
            solver=solver.name,
            num_evaluations=num_evaluations,
            cfg_scale=solver.cfg_scale,
            eta=solver.options.get("eta"),
        )

    @property
    def reference(self) -> torch.Tensor:
        """The uncached images, drawn once."""
        if self._reference is None:
            self._reference = sample_many(self.uncached, self.labels, self.noise, batch_size=self.cfg.batch_size)
        return self._reference

    def samplers(self, method: str, target: float) -> dict[int, Sampler]:
        """Return a method's samplers at a budget by seed; none where it cannot reach it."""
        if method == FEWER_STEPS:
            return {0: self.plain(max(2, round(target)))}
        if method in self.cfg.graphs:
            return self.given(method, target)
        options = dict(self.cfg.methods[method] or {})
        policy = options.pop("policy", method)
        seeds = range(self.cfg.num_seeds) if policy == "random" else (0,)
        found: dict[int, Sampler] = {}
        for seed in seeds:
            extra = {"seed": seed} if policy == "random" else {}
            try:
                graph = make_graph(policy, self.problem, target=target, **options, **extra)
            except ValueError as error:
                if "out of reach" not in str(error):
                    raise
                tqdm.write(f"{method} at {target:g}: {error}")
                continue
            found[seed] = self.cached(graph)
        return found

    def given(self, method: str, target: float) -> dict[int, Sampler]:
        """Return samplers of the trained graphs whose MACs are near a budget."""
        found: dict[int, Sampler] = {}
        pattern = Path(self.cfg.graphs[method]).absolute()
        for path in sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))):
            graph = CacheGraph.load(path)
            if abs(self.problem.cost.evaluations_worth(graph) - target) <= NEAR:
                found[len(found)] = self.cached(graph)
        return found

    def cached(self, graph: CacheGraph) -> Sampler:
        """Return the sampler of a graph under the comparison's guidance."""
        return Sampler(self.backbone, graph=graph, cfg_scale=self.cfg.solver.cfg_scale)

    def measure(self, method: str, target: float) -> list[Cell]:
        """Return the cells of a method at a budget, from the folder where they are there already."""
        name = re.sub(r"\W+", "_", method)
        path = self.folder / "cells" / f"{name}-{target:g}.json"
        if path.is_file():
            return [Cell(**cell) for cell in json.loads(path.read_text(encoding="utf-8"))]
        cells = []
        for seed, sampler in self.samplers(method, target).items():
            images = sample_many(sampler, self.labels, self.noise, batch_size=self.cfg.batch_size)
            error = image_error(images, self.reference)
            count = self.cfg.timing_batch
            labels = None if self.labels is None else self.labels[:count]
            draw = {
                "uncached": partial(self.uncached.sample, labels, noise=self.noise[:count]),
                "this": partial(sampler.sample, labels, noise=self.noise[:count]),
            }
            times = alternate(draw, repetitions=self.cfg.timing_repetitions)
            graph = sampler.graph
            worth = sampler.solver.num_evaluations if graph is None else self.problem.cost.evaluations_worth(graph)
            cells.append(
                Cell(
                    method,
                    target,
                    seed,
                    float(worth),
                    error.mse,
                    error.mse_standard_error,
                    times["this"].seconds,
                    times["uncached"].seconds,
                )
            )
            if seed == 0:
                shown = {"uncached": self.reference[:10], f"{method} {target:g}": images[:10]}
                save_figure(sample_grid(shown, None), self.folder / "samples" / f"{name}-{target:g}.png")
                if graph is not None:
                    graph.save(self.folder / "graphs" / f"{name}-{target:g}.json")
                    save_figure(graph_heatmap(graph), self.folder / "graphs" / f"{name}-{target:g}.png")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps([asdict(cell) for cell in cells], indent=1), encoding="utf-8")
        return cells


def check(cfg: DictConfig) -> list[str]:
    """Return the names of all methods, or refuse an unknown one."""
    known = [FEWER_STEPS, *POLICIES]
    for method, options in cfg.methods.items():
        policy = (options or {}).get("policy", method)
        if policy not in known:
            raise ValueError(f"unknown method {policy!r}; {near_names(policy, known)}")
    both = [name for name in cfg.graphs if name in cfg.methods]
    if both:
        raise ValueError(f"{both[0]!r} is both in methods and in graphs; give one of them another name")
    return [*cfg.methods, *cfg.graphs]


@cli.entry("compare")
def main(cfg: DictConfig) -> None:
    """Measure what is missing, write the reports."""
    names = check(cfg)
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    folder = cli.run_folder()
    settings = json.dumps(
        [cfg.model.name, cfg.num_images, cfg.seed, dict(cfg.solver.items()), str(cfg.model.checkpoint)], default=str
    )
    record = folder / "settings.json"
    if record.is_file() and record.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{folder} holds a comparison with other settings; choose another with hydra.run.dir=PATH")
    comparison = Comparison(cfg, folder)
    with replacing(record) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    cells: list[Cell] = []
    with tqdm(total=len(names) * len(cfg.targets), desc="comparing", unit="cell") as bar:
        for target in cfg.targets:
            for name in names:
                bar.set_postfix_str(f"{name} {target:g}")
                cells += comparison.measure(name, float(target))
                bar.update()
    if not cells:
        raise ValueError("no method reaches any of the targets; raise them")
    text = to_markdown(cells)
    note = (
        f"{cfg.model.name}: {cfg.num_images} noises (seed {cfg.seed}) never used in calibration; the error is that "
        f"against the uncached images; ratios under 1.5 are ties. Measured on {machine()}."
    )
    for file, content in (("table.md", f"{note}\n\n{text}\n"), ("table.csv", to_csv(cells))):
        with replacing(folder / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    figure = pareto(cells)
    for suffix in ("png", "svg"):
        save_figure(figure, folder / f"pareto.{suffix}")
    pictures = {"error against cost": folder / "pareto.png"}
    for kind in ("samples", "graphs"):
        pictures |= {f"{kind}: {path.stem}": path for path in sorted((folder / kind).glob("*.png"))}
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(html_report(f"Caching {cfg.model.name}", cells, pictures, note), encoding="utf-8")
    print(f"{text}\n\nreport: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
