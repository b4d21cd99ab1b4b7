"""Settings of the training of slopes, scales and shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2c.io.numbers import LARGEST_SEED
from l2c.io.settings import Settings, flag, number, text, whole

LOSSES = ("image", "output")


@dataclass(frozen=True)
class CorrectionSettings(Settings):
    """Settings of a run of correction training.

    Attributes:
        loss: `image`: through the whole trajectory; `output`: of each evaluation, as published.
        slopes: train the slope of each reused entry.
        scale_shift: train a scale and a shift per channel of each reused entry.
        max_steps: a step is a trajectory of the batch; also the length of the learning rates' cosine.
        batch_size: trajectories of a step.
        slope_rate: peak learning rate of the slopes.
        scale_shift_rate: about the largest change of a scale or a shift in a step.
        seed: seed of the noise.
        accelerator: Lightning's name of the hardware to train on.
        resume: a checkpoint to continue from, `auto` for the one in the run's folder if any; None = start anew.

    """

    loss: str = text("image", choices=LOSSES)
    slopes: bool = flag(True)
    scale_shift: bool = flag(True)
    max_steps: int = whole(100, at_least=1)
    batch_size: int = whole(16, at_least=1, at_most=10**6)
    slope_rate: float = number(0.02, above=0)
    scale_shift_rate: float = number(0.003, above=0)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    accelerator: str = text("auto")
    resume: str | None = text(None, optional=True, example="auto")

    def check_together(self) -> None:
        """Refuse a run that trains nothing."""
        if not (self.slopes or self.scale_shift):
            raise ValueError("slopes=false and scale_shift=false leave nothing to train; set one of them to true")

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; a run is resumed with the same ones."""
        return {name: value for name, value in self.to_dict().items() if name not in ("accelerator", "resume")}
