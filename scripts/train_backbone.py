"""Train a small backbone on scikit-learn's digits and write its EMA weights.

python scripts/train_backbone.py model=dit_digits
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from l2c.training.backbone_run import train_backbone


@hydra.main(config_path="../configs", config_name="train_backbone", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train, then say where the weights are."""
    print(f"wrote {train_backbone(cfg, Path(HydraConfig.get().runtime.output_dir))}")


if __name__ == "__main__":
    main()
