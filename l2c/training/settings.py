"""Settings that all trainings share: devices, number of steps, loggers of metrics."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from l2c.io.settings import Either, Items, Number, Settings, Text, flag, number, ruled, text, whole

THREADS = min(8 * (os.cpu_count() or 1), 512)  # each takes addresses: many end the process where those are limited
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")
DEVICES = Either(
    rules=(
        Number(whole=True, at_least=1, at_most=1024),
        Text(choices=("auto",)),
        Items(item=Number(whole=True, at_least=0)),
    )
)


@dataclass(frozen=True)
class TrainerSettings(Settings, group="trainer"):
    """Arguments of Lightning's Trainer; names and meanings are Lightning's.

    Attributes:
        max_steps: number of optimiser steps.
        accelerator: `auto`, `cpu`, `gpu`, ...
        devices: number of devices of a machine, `auto`, or a list of their numbers.
        num_nodes: machines.
        strategy: how processes share the work; `auto` of several is DDP.
        precision: precision of the arithmetic, such as `bf16-mixed`.
        accumulate_grad_batches: parts of a step's batch, one after the other.
        log_every_n_steps: steps between two lines of metrics.
        gradient_clip_val: largest norm of the gradient; None = no limit.
        enable_progress_bar: show a bar.
        deterministic: only deterministic kernels.

    """

    max_steps: int = whole(200, at_least=1)
    accelerator: str = text("auto")
    devices: int | str | list[int] = ruled(DEVICES, 1)
    num_nodes: int = whole(1, at_least=1, at_most=65536)
    strategy: str = text("auto")
    precision: str = text("32-true", choices=PRECISIONS)
    accumulate_grad_batches: int = whole(1, at_least=1)
    log_every_n_steps: int = whole(10, at_least=1)
    gradient_clip_val: float | None = number(None, above=0, optional=True, example=1.0)
    enable_progress_bar: bool = flag(True)
    deterministic: bool = flag(False)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the Trainer."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.to_dict().items()}


@dataclass(frozen=True)
class LoggerSettings(Settings, group="logger"):
    """Settings of the loggers of metrics.

    Attributes:
        name: `csv` files in the run's folder, or `wandb`.
        project: project of Weights & Biases.
        run_name: name of the run in Weights & Biases; None = a generated one.
        offline: keep Weights & Biases offline; it is so too where no API key is set.

    """

    name: str = text("csv", choices=("csv", "wandb"))
    project: str = text("l2c")
    run_name: str | None = text(None, optional=True)
    offline: bool = flag(False)
