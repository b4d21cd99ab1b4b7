"""Train the routers of a frozen backbone and export them as a cache graph.

l2c train model=dit_digits router.penalty=3e-3 trainer.max_steps=300
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from l2c.backbones.presets import RANDOM
from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import configured_backbone, is_pipeline, other_weights
from l2c.commands.frame.settings import checked, router_training
from l2c.commands.frame.table import command_line, python_line
from l2c.testbeds.pixel_data import PIXEL_DATA, pixel_data
from l2c.training.routers.run import TrainedRouters, train_routers
from l2c.training.trainer import seed_everything


def train_by(cfg: DictConfig, folder: Path) -> TrainedRouters:
    """Train routers as `configs/train_router.yaml` says; see `train_routers`."""
    check = checked("train_router", cfg)
    settings = router_training(check.top, check.groups)
    seed_everything(settings.seed)
    backbone = configured_backbone(cfg.model, cfg.solver)
    images = None
    if settings.data.name in PIXEL_DATA:
        images = pixel_data(
            settings.data.name,
            image_shape=backbone.input_shape,
            num_labels=backbone.num_labels,
            batch_size=settings.data.batch_size,
            seed=settings.seed,
            **{name: value for name, value in settings.data.to_dict().items() if name not in ("name", "batch_size")},
        )
    return train_routers(
        backbone,
        settings,
        folder,
        images=images,
        any_weights=cfg.model.checkpoint == RANDOM,
        config=OmegaConf.to_yaml(cfg, resolve=True),
    )


@cli.entry("train_router")
def main(cfg: DictConfig) -> None:
    """Train, export, say what came out and what to do next."""
    result = train_by(cfg, cli.run_folder())
    path = result.folder / "cache_graph.json"
    print(result.graph.summary())
    print(
        f"{result.cost.evaluations_worth(result.graph):.2f} evaluations' worth of MACs instead of "
        f"{result.graph.num_evaluations}: {result.cost.speed_up(result.graph):.2f} x by MACs"
    )
    if result.advice is not None:
        sys.stderr.write(f"warning: {result.advice}\n")
        print(f"wrote {path}")
        return
    if is_pipeline(cfg.model):
        print(f"wrote {path}\nnext: {python_line(path)}")
        return
    print(f"wrote {path}\nnext: {command_line('evaluate', graph=path, checkpoint=other_weights(cfg.model))}")


if __name__ == "__main__":
    main()
