"""Lightning's Trainer for endless loaders, without the lines that hide what a user looks for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from l2c.backbones.weights import reason_of

# Lines on devices and tips; warnings still come through.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

EXPECTED_WARNINGS = (
    r".*Checkpoint directory .* exists and is not empty",  # the run folder holds config.yaml by then
    r".*in eval mode at the start of training",  # the frozen backbone is meant to be
    r".*does not have many workers",  # batches are made from tensors in memory
    r".*smaller than the logging interval",
    r"predict returned None",  # images go to disk
    r"Total length of `DataLoader` across ranks is zero",  # all shards are there
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
    try:
        return pl.Trainer(max_steps=max_steps, limit_train_batches=batches, enable_model_summary=False, **settings)
    except MisconfigurationException as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"the trainer's settings do not fit this machine: {reason}; change trainer.*") from error


def make_run_trainer(
    folder: Path,
    *,
    max_steps: int,
    checkpoint_every: int,
    checkpoint_name: str | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **settings: Any,
) -> pl.Trainer:
    """Return the Trainer of a run that leaves its metrics and `last.ckpt` in its folder, to be resumed from.

    Args:
        folder: of the run.
        max_steps: see `make_trainer`.
        checkpoint_every: steps between two checkpoints.
        checkpoint_name: of the checkpoints beside `last.ckpt`; None = Lightning's own.
        callbacks: others than the one that writes checkpoints.
        settings: passed on; without `logger` metrics go to CSV files.

    """
    checkpoints = ModelCheckpoint(
        folder,
        filename=checkpoint_name,
        every_n_train_steps=checkpoint_every,
        save_last=True,
        enable_version_counter=False,  # a second run's last.ckpt must not hide behind the first one's
    )
    settings.setdefault("logger", CSVLogger(folder, name="metrics"))
    return make_trainer(max_steps=max_steps, callbacks=[*callbacks, checkpoints], **settings)


def make_bare_trainer(*, max_steps: int, **settings: Any) -> pl.Trainer:
    """Return a Trainer that writes neither metrics nor checkpoints; see `make_trainer`."""
    return make_trainer(max_steps=max_steps, logger=False, enable_checkpointing=False, **settings)


def check_checkpoint(path: str | Path, prefix: str, expected: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint to resume from that is damaged or belongs to another run.

    Args:
        path: the checkpoint.
        prefix: what the names of the trained weights begin with in it.
        expected: names after the prefix and tensors of this run's trained weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or its weights have other names or shapes; the message names the first few.

    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint to resume from at {path}; give the last.ckpt of a run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # each kind of damage has its own exception
        raise ValueError(f"cannot resume from {path}: {reason_of(error)}") from error
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    wrong = sorted(
        set(found.keys() ^ expected.keys())
        | {name for name in found.keys() & expected.keys() if found[name].shape != expected[name].shape}
    )
    if wrong:
        raise ValueError(
            f"{path} belongs to another run: {len(wrong)} weights are missing, unexpected or of another shape "
            f"({', '.join(wrong[:3])}); resume with the settings it was made with, or start anew without resume"
        )
