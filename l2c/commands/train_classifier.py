"""Train the small classifier that reads digits or emoji, and say how well it reads held-out ones.

python scripts/train_classifier.py
python scripts/train_classifier.py dataset=emoji
"""

from omegaconf import DictConfig

from l2c.commands import entry as cli
from l2c.testbeds.classifier_run import train_classifier


@cli.entry("train_classifier")
def main(cfg: DictConfig) -> None:
    """Train, then say where the weights are and what they can do."""
    result = train_classifier(cfg)
    print(
        f"wrote {result.path}: {100 * result.held_out_accuracy:.1f} % of {result.num_held_out} held-out {cfg.dataset}"
    )


if __name__ == "__main__":
    main()
