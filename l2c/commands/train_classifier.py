"""Train the small classifier that reads digits or emoji, and say how well it reads held-out ones.

l2c train-classifier
l2c train-classifier dataset=emoji
"""

from omegaconf import DictConfig

from l2c.commands.frame import entry as cli
from l2c.commands.frame.settings import checked
from l2c.testbeds.classifier_run import train_classifier
from l2c.testbeds.settings import ClassifierTraining


@cli.entry("train_classifier")
def main(cfg: DictConfig) -> None:
    """Train, then say where the weights are and what they can do."""
    settings = checked("train_classifier", cfg).top
    assert isinstance(settings, ClassifierTraining)
    result = train_classifier(settings)
    share = 100 * result.held_out_accuracy
    print(f"wrote {result.path}: {share:.1f} % of {result.num_held_out} held-out {settings.dataset}")


if __name__ == "__main__":
    main()
