"""Make a cache graph by a policy, without training.

l2c graph policy=interval policy.n=2
"""

from omegaconf import DictConfig

from l2c.backbones.shapes import backbone_shapes
from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import BACKBONE_SETTINGS, configured_backbone, is_pipeline, other_weights
from l2c.commands.frame.graphs import write_graph
from l2c.commands.frame.table import command_line
from l2c.policies.calibration import Calibration
from l2c.policies.context import PolicyContext
from l2c.policies.registry import UNMEASURED
from l2c.sampling.uncached import uncached_by


@cli.entry("make_graph")
def main(cfg: DictConfig) -> None:
    """Load, build, write, say what came out."""
    calibration = None if cfg.calibration is None else Calibration.load(cfg.calibration)
    shapes_will_do = cfg.policy.name in UNMEASURED and calibration is None and not is_pipeline(cfg.model)
    backbone = backbone_shapes(cfg.model) if shapes_will_do else configured_backbone(cfg.model, cfg.solver)
    sampler = uncached_by(backbone, cfg.solver)
    context = PolicyContext.of(sampler, calibration)
    graph, path = write_graph(cfg, context, cli.run_folder())
    print(graph.summary())
    print(
        f"{context.cost.evaluations_worth(graph):.2f} evaluations' worth of MACs instead of "
        f"{graph.num_evaluations}: {context.cost.speed_up(graph):.2f} x by MACs"
    )
    same = cli.repeated(*BACKBONE_SETTINGS) if is_pipeline(cfg.model) else []  # the graph itself names a preset
    print(f"wrote {path}\nnext: {command_line('evaluate', *same, graph=path, checkpoint=other_weights(cfg.model))}")


if __name__ == "__main__":
    main()
