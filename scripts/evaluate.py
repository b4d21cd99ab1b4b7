"""Judge a cache graph: error, cost and time against the uncached sampler and baselines of equal MACs.

python scripts/evaluate.py graph=runs/demo/cache_graph.json
"""

import sys

import torch
from omegaconf import DictConfig

from l2c import cli
from l2c.backbones.zoo import load_backbone, model_preset
from l2c.evaluation.comparison import compare
from l2c.evaluation.cost import count_macs
from l2c.evaluation.digits_classifier import load_digits_classifier
from l2c.evaluation.report import table, write_report
from l2c.graph import CacheGraph
from l2c.policies.random_layers import random_layers
from l2c.sampling.sampler import Sampler

BASELINES = ("fewer_steps", "random")


@cli.entry("evaluate")
def main(cfg: DictConfig) -> None:
    """Load, build the samplers, compare, report."""
    if cfg.graph is None:
        raise ValueError("no graph given; say graph=PATH of a cache_graph.json (train_router.py writes one)")
    unknown = [name for name in cfg.baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"unknown baseline {unknown[0]!r}; known are {', '.join(BASELINES)}")
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    graph = CacheGraph.load(cfg.graph)
    preset = cfg.get("model") or model_preset(graph.model)
    backbone = load_backbone(preset, checkpoint=cfg.checkpoint)
    cost = count_macs(backbone)
    scale = next((s for s in (cfg.cfg_scale, graph.cfg_scale) if s is not None), preset.sampling.cfg_scale)

    def uncached(num_evaluations: int) -> Sampler:
        return Sampler(
            backbone,
            solver=graph.solver,
            num_evaluations=num_evaluations,
            cfg_scale=scale,
            eta=graph.solver_options.get("eta"),
        )

    samplers = {
        "uncached": [uncached(graph.num_evaluations)],
        str(graph.provenance.get("method", "graph")): [Sampler(backbone, graph=graph, cfg_scale=scale)],
    }
    if "fewer_steps" in cfg.baselines:
        # An odd number would end 2S with a first-order step, which makes the baseline look far worse than it is.
        unit = 2 if graph.solver == "dpm_solver_2s" else 1
        samplers["fewer steps"] = [uncached(max(2, unit * round(cost.evaluations_worth(graph) / unit)))]
    if "random" in cfg.baselines:
        draws = [random_layers(graph, cost, seed=seed) for seed in range(cfg.random_draws)]
        name = f"random layers (mean of {len(draws)})"
        samplers[name] = [Sampler(backbone, graph=draw, cfg_scale=scale) for draw in draws]
    comparison = compare(
        samplers,
        cost=cost,
        num_images=cfg.num_images,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        classifier=load_digits_classifier() if preset.data == "digits" else None,
        timing_batch=cfg.timing_batch,
        timing_repetitions=cfg.timing_repetitions,
    )
    command = " ".join(["python scripts/evaluate.py", *sys.argv[1:]])
    report = write_report(cli.run_folder(), graph, comparison, cost, command=command)
    print(table(comparison, cost))
    print(f"\nreport: {report}\npictures: {report.parent / 'samples.png'}, {report.parent / 'graph.png'}")


if __name__ == "__main__":
    main()
