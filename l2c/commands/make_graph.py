"""Make a cache graph by a policy, without training.

l2c graph policy=interval policy.n=2
"""

from omegaconf import DictConfig

from l2c.calibration.calibration import Calibration
from l2c.commands import entry as cli
from l2c.commands.backends import configured_backbone, pipeline_options
from l2c.commands.table import command_line
from l2c.policies.context import Problem
from l2c.policies.registry import make_graph
from l2c.report.figures import graph_heatmap, save_figure
from l2c.sampling.sampler import Sampler


@cli.entry("make_graph")
def main(cfg: DictConfig) -> None:
    """Load, build, write, say what came out."""
    if cfg.target is not None and cfg.budget is not None and cfg.target != cfg.budget:
        raise ValueError(f"target={cfg.target} and budget={cfg.budget} are two names of one thing; give one of them")
    target = cfg.budget if cfg.target is None else cfg.target
    calibration = None if cfg.statistics is None else Calibration.load(cfg.statistics)
    sampler = Sampler(
        configured_backbone(cfg.model, cfg.solver),
        solver=cfg.solver.name,
        num_evaluations=cfg.solver.num_evaluations,
        cfg_scale=cfg.solver.cfg_scale,
        eta=cfg.solver.options.get("eta"),
    )
    options = {str(key): value for key, value in cfg.policy.items() if key != "name"}
    problem = Problem.of(sampler, calibration)
    graph = make_graph(cfg.policy.name, problem, **options, **({} if target is None else {"target": target}))
    folder = cli.run_folder()
    graph.save(folder / "cache_graph.json")
    save_figure(graph_heatmap(graph), folder / "graph.png")
    print(graph.summary())
    print(
        f"{problem.cost.evaluations_worth(graph):.2f} evaluations' worth of MACs instead of "
        f"{graph.num_evaluations}: {problem.cost.speed_up(graph):.2f} x by MACs"
    )
    path = folder / "cache_graph.json"
    print(f"wrote {path}\nnext: {command_line('evaluate', *pipeline_options(cfg.model), graph=path)}")


if __name__ == "__main__":
    main()
