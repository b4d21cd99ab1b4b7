"""Train a small backbone on scikit-learn's digits or on emoji and write its EMA weights.

l2c train-backbone model=dit_digits
"""

from pathlib import Path

from omegaconf import DictConfig

from l2c.backbones.presets import build_backbone
from l2c.commands.frame import entry as cli
from l2c.commands.frame.command_settings import TrainBackbone
from l2c.commands.frame.settings import checked
from l2c.testbeds.backbone_run import train_backbone
from l2c.testbeds.pixel_data import pixel_data
from l2c.training.trainer import seed_everything


def train_by(cfg: DictConfig, folder: Path) -> Path:
    """Train as `configs/train_backbone.yaml` says; see `train_backbone`."""
    settings = checked("train_backbone", cfg).top
    assert isinstance(settings, TrainBackbone)
    seed_everything(settings.seed)
    backbone = build_backbone(cfg.model)
    data = pixel_data(
        settings.dataset,
        image_shape=backbone.input_shape,
        num_labels=backbone.num_labels,
        batch_size=settings.batch_size,
        seed=settings.seed,
        **settings.dataset_options,
    )
    return train_backbone(backbone, data, settings, folder)


@cli.entry("train_backbone")
def main(cfg: DictConfig) -> None:
    """Train, then say where the weights are."""
    print(f"wrote {train_by(cfg, cli.run_folder())}")


if __name__ == "__main__":
    main()
