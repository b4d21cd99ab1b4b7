"""Train a small backbone on scikit-learn's digits or on emoji and write its EMA weights.

python scripts/train_backbone.py model=dit_digits
"""

from omegaconf import DictConfig

from l2c.commands import entry as cli
from l2c.testbeds.backbone_run import train_backbone


@cli.entry("train_backbone")
def main(cfg: DictConfig) -> None:
    """Train, then say where the weights are."""
    print(f"wrote {train_backbone(cfg, cli.run_folder())}")


if __name__ == "__main__":
    main()
