"""Settings of the training of the small networks that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2c.io.numbers import LARGEST_SEED
from l2c.io.settings import Settings, number, text, whole
from l2c.training.routers.settings import DataSettings
from l2c.training.settings import THREADS

OPTIMIZERS = ("adamw", "muon")
SKIN_TONES = ("all", "none")
CLASSIFIED = ("digits", "emoji")  # the data sets that a classifier reads; see `testbeds.readers`


@dataclass(frozen=True)
class EmojiSettings(DataSettings):
    """The emoji as training data.

    Attributes:
        skin_tones: `all` variants in skin tones, or `none` of them.

    """

    name: str = text("emoji")
    skin_tones: str = text("all", choices=SKIN_TONES)


PIXEL_SETTINGS: dict[str, type[DataSettings]] = {"digits": DataSettings, "emoji": EmojiSettings}


@dataclass(frozen=True)
class BackboneTraining(Settings):
    """Settings of a run of backbone training.

    Attributes:
        output: file of the averaged weights, 16-bit safetensors; None = named after the model, in the run folder.
        optimizer: `adamw`, or `muon` for the blocks' matrices with AdamW for the rest.
        learning_rate: peak learning rate of AdamW.
        muon_learning_rate: peak learning rate of Muon.
        weight_decay: weight decay of both.
        max_steps: number of steps; the learning rate's cosine ends there.
        warmup_steps: steps of linear warm-up.
        decay_share: the part of the steps that the cosine takes; 1 = no constant part.
        batch_size: images of a step.
        label_dropout: share of labels replaced by the null label.
        min_snr_gamma: weigh the error of the data by min(SNR, gamma); None = the prediction's error as it is.
        ema_decay: decay of the averaged weights, a step.
        gradient_clip: largest norm of the gradient.
        seed: seed of weights, times, noise and label dropout.
        num_threads: one makes the weights reproducible on a machine type.
        accelerator: Lightning's name of the hardware to train on.
        resume: a checkpoint to continue from, `auto` for the one in the run's folder if any; None = start anew. A
            finished run with a larger `max_steps` is restarted: its learning rate rises again.

    """

    output: str | None = text(None, optional=True, example="mine.safetensors")
    optimizer: str = text("adamw", choices=OPTIMIZERS)
    learning_rate: float = number(2e-3, above=0)
    muon_learning_rate: float = number(3e-3, above=0)
    weight_decay: float = number(0.0, at_least=0)
    max_steps: int = whole(3600, at_least=1)
    warmup_steps: int = whole(100, at_least=1)
    decay_share: float = number(1.0, above=0, at_most=1)
    batch_size: int = whole(128, at_least=1, at_most=10**6)
    label_dropout: float = number(0.1, at_least=0, at_most=1)
    min_snr_gamma: float | None = number(None, above=0, optional=True, example=5)
    ema_decay: float = number(0.999, at_least=0, below=1)
    gradient_clip: float = number(1.0, above=0)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    num_threads: int = whole(1, at_least=1, at_most=THREADS)
    accelerator: str = text("cpu")
    resume: str | None = text(None, optional=True, example="auto")

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; a run is resumed with the same ones."""
        free = ("output", "num_threads", "accelerator", "resume")
        return {name: value for name, value in self.to_dict().items() if name not in free}


@dataclass(frozen=True)
class ClassifierTraining(Settings):
    """Settings of a run of classifier training; other names as in `BackboneTraining`.

    Attributes:
        dataset: `digits` or `emoji`.

    """

    dataset: str = text("digits", choices=CLASSIFIED)
    output: str = text()
    learning_rate: float = number(2e-3, above=0)
    max_steps: int = whole(1500, at_least=1)
    batch_size: int = whole(64, at_least=1, at_most=10**6)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    num_threads: int = whole(1, at_least=1, at_most=THREADS)
