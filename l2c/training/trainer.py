"""Lightning's Trainer for endless loaders, without the lines that hide what a user looks for."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl

# Lines on devices and tips; warnings still come through.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

EXPECTED_WARNINGS = (
    r".*Checkpoint directory .* exists and is not empty",  # the run folder holds config.yaml by then
    r".*in eval mode at the start of training",  # the frozen backbone is meant to be
    r".*does not have many workers",  # batches are made from tensors in memory
    r".*smaller than the logging interval",
    r".*your dataloader is not resumable",  # ours starts at the trainer's step
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
)


def make_trainer(*, max_steps: int, **settings: Any) -> pl.Trainer:
    """Return a Trainer that stops after `max_steps` steps of a loader without end.

    Args:
        max_steps: number of optimiser steps; gives the progress bar its length.
        settings: passed on to `lightning.pytorch.Trainer`.

    """
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    batches = max_steps * settings.get("accumulate_grad_batches", 1)
    return pl.Trainer(max_steps=max_steps, limit_train_batches=batches, enable_model_summary=False, **settings)
