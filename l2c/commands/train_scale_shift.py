"""Train the slopes, scales and shifts of what a cache graph reuses.

l2c correct graph=runs/.../cache_graph.json
l2c correct graph=runs/.../cache_graph.json backend=diffusers pipeline=PATH
"""

from pathlib import Path

from omegaconf import DictConfig

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone
from l2c.backbones.whole_output import under_layers
from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import configured_backbone, is_pipeline
from l2c.commands.frame.sampler import preset_of
from l2c.commands.frame.settings import checked
from l2c.commands.frame.table import command_line, python_line
from l2c.graph.binding import scale_in_use
from l2c.graph.cache_graph import CacheGraph
from l2c.training.corrections.run import train_correction, uncached_sampler
from l2c.training.corrections.settings import CorrectionSettings


def train_by(cfg: DictConfig, folder: Path) -> Path:
    """Train a correction as `configs/train_scale_shift.yaml` says; see `train_correction`."""
    check = checked("train_scale_shift", cfg)
    assert isinstance(check.top, CorrectionSettings)
    if cfg.graph is None:
        raise ValueError("no graph given; say graph=PATH of a cache_graph.json (l2c graph writes one)")
    graph = CacheGraph.load(cfg.graph)
    if graph.correction is not None:
        raise ValueError(f"{cfg.graph} has a correction already; give the graph that it was trained from")
    solver = check.groups.get("solver")
    scale = scale_in_use(cfg.cfg_scale, graph.cfg_scale, solver and solver.cfg_scale)
    backbone, published = backbone_of(cfg, graph, scale)
    sampler = uncached_sampler(
        backbone,
        graph,
        solver=None if solver is None or solver.name == "pipeline" else solver.name,
        num_evaluations=solver and solver.num_evaluations,
        cfg_scale=scale_in_use(scale, None, published),
    )
    return train_correction(graph, sampler, check.top, folder)


def backbone_of(cfg: DictConfig, graph: CacheGraph, scale: float | None) -> tuple[Backbone, float | None]:
    """Return the backbone that a graph is for, and the guidance scale that its preset publishes."""
    model = cfg.get("model")
    if model is not None and is_pipeline(model):
        if cfg.checkpoint is not None:
            raise ValueError("a pipeline brings its own weights; leave checkpoint out, or name another pipeline=PATH")
        solver = {"num_evaluations": graph.num_evaluations, "cfg_scale": scale}
        backbone = under_layers(configured_backbone(model, solver), graph.layers)
        if backbone.conventions.name == graph.model and set(backbone.layer_names) != set(graph.layers):
            raise ValueError(
                f"the graph's {graph.num_layers} layers ({graph.layers[0]}, ...) are not the {backbone.num_layers} "
                f"({backbone.layer_names[0]}, ...) that were looked for in {graph.model}; give the kinds that it was "
                "made with, model.layers=[layer], [block] or [block,resnet]"
            )
        return backbone, None
    preset = preset_of(cfg, graph)
    return load_backbone(preset, checkpoint=cfg.checkpoint), preset.sampling.cfg_scale


@cli.entry("train_scale_shift")
def main(cfg: DictConfig) -> None:
    """Train, then say where the corrected graph is."""
    path = train_by(cfg, cli.run_folder())
    if is_pipeline(cfg.get("model")):
        print(f"wrote {path}\nnext: {python_line(path)}")
        return
    print(f"wrote {path}\nnext: {command_line('evaluate', graph=path, checkpoint=cfg.checkpoint)}")


if __name__ == "__main__":
    main()
