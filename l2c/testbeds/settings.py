"""Settings of the training of the small networks that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2c.io.settings import Settings, number, text, whole
from l2c.training.settings import LARGEST_SEED


@dataclass(frozen=True)
class BackboneTraining(Settings):
    """What a run of backbone training is told.

    Attributes:
        output: file of the averaged weights, 16-bit safetensors.
        learning_rate: peak of AdamW's.
        weight_decay: of AdamW.
        max_steps: number of steps; also the length of the learning rate's cosine.
        warmup_steps: steps of linear warm-up.
        batch_size: images of a step.
        label_dropout: share of labels replaced by the null label.
        ema_decay: of the averaged weights, a step.
        gradient_clip: largest norm of the gradient.
        seed: of weights, times, noise and label dropout.
        num_threads: one makes the weights reproducible on a machine type.
        accelerator: where to train, in Lightning's words.
        resume: a checkpoint to continue from, `auto` for the one in the run's folder if any; None = start anew.

    """

    output: str = text()
    learning_rate: float = number(2e-3, above=0)
    weight_decay: float = number(0.0, at_least=0)
    max_steps: int = whole(3600, at_least=1)
    warmup_steps: int = whole(100, at_least=1)
    batch_size: int = whole(128, at_least=1)
    label_dropout: float = number(0.1, at_least=0, at_most=1)
    ema_decay: float = number(0.999, at_least=0, below=1)
    gradient_clip: float = number(1.0, above=0)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    num_threads: int = whole(1, at_least=1)
    accelerator: str = text("cpu")
    resume: str | None = text(None, optional=True, example="auto")

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; a run is resumed with the same ones."""
        free = ("output", "num_threads", "accelerator", "resume")
        return {name: value for name, value in self.to_dict().items() if name not in free}


@dataclass(frozen=True)
class ClassifierTraining(Settings):
    """What a run of classifier training is told; names as in `BackboneTraining`."""

    output: str = text()
    learning_rate: float = number(2e-3, above=0)
    max_steps: int = whole(1500, at_least=1)
    batch_size: int = whole(64, at_least=1)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    num_threads: int = whole(1, at_least=1)
