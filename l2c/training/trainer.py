"""Lightning's Trainer for endless loaders, without the lines that hide what a user looks for."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from l2c.data.processes import check_processes, check_trainer_variables, may_be_one_of_several
from l2c.io.memory import out_of_memory
from l2c.io.names import as_text
from l2c.training.checkpoints import RunIdentity, WholeCheckpoints
from l2c.training.watch import FiniteLoss, StepBar, StopBySignal

# Lines on devices, processes and tips; warnings still come through.
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)

FEW = 8  # processes that any CPU may be asked for
EXPECTED_WARNINGS = (
    r".*Checkpoint directory .* exists and is not empty",  # the run folder holds config.yaml by then
    r".*in eval mode at the start of training",  # the frozen backbone is meant to be
    r".*does not have many workers",  # batches are made from tensors in memory
    r".*smaller than the logging interval",
    r"predict returned None",  # images go to disk
    r"Total length of `DataLoader` across ranks is zero",  # all shards are there
    r".*callbacks used to create the checkpoint need to be provided",  # another checkpoint interval
    r".*your dataloader is not resumable",  # ours starts at the trainer's step
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's own generators, which fresh weights are drawn from."""
    pl.seed_everything(seed, verbose=False)


def make_trainer(
    *, max_steps: int, callbacks: Sequence[pl.Callback] = (), folder: Path | None = None, **settings: Any
) -> pl.Trainer:
    """Return a Trainer that stops after `max_steps` steps of a loader without end.

    Args:
        max_steps: number of optimiser steps; gives the progress bar its length.
        callbacks: others than the progress bar and what ends a run by signals.
        folder: where a run that a signal ends leaves its checkpoint; None = nowhere.
        settings: passed on to `lightning.pytorch.Trainer`.

    Raises:
        ValueError: if the settings do not fit this machine.

    """
    check_trainer_variables()
    _check_processes(settings.get("accelerator", "auto"), settings.get("devices", 1))
    _check_machines(settings.get("num_nodes", 1))
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    batches = max_steps * settings.get("accumulate_grad_batches", 1)
    bar = [StepBar()] if settings.get("enable_progress_bar", True) else []
    try:
        trainer = pl.Trainer(
            max_steps=max_steps,
            limit_train_batches=batches,
            enable_model_summary=False,
            callbacks=[*callbacks, StopBySignal(folder), *bar],
            **settings,
        )
    except (MisconfigurationException, RuntimeError, LookupError) as error:  # the last two of cluster variables
        if out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"the trainer's settings do not fit this machine: {reason}; change trainer.*") from error
    check_processes(trainer.global_rank, trainer.world_size)
    return trainer


def _check_processes(accelerator: str, devices: object) -> None:
    """Refuse more processes on a CPU than it has cores for: Lightning would start as many as it is told.

    Raises:
        ValueError: if there are more, or a list of numbers, which mean nothing on a CPU.

    """
    if accelerator != "cpu" and not (accelerator == "auto" and not torch.cuda.is_available()):
        return
    most = max(FEW, os.cpu_count() or 1)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        raise ValueError(f"trainer.devices={as_text(devices)} names GPUs, but this is a CPU; say trainer.devices=1")
    if isinstance(devices, int) and devices > most:
        raise ValueError(
            f"trainer.devices={devices} asks for more processes on a CPU than {most}; say trainer.devices=1"
        )


def _check_machines(num_nodes: int) -> None:
    """Refuse several machines where nothing has started this process as one of theirs: it would wait for them.

    Raises:
        ValueError: if there are several, and no sign of what starts processes.

    """
    if num_nodes > 1 and not may_be_one_of_several():
        raise ValueError(
            f"trainer.num_nodes={num_nodes} waits for processes on other machines, but nothing has started this one "
            "beside them; start it by torchrun or srun on each, or say trainer.num_nodes=1"
        )


def make_run_trainer(
    folder: Path,
    *,
    max_steps: int,
    checkpoint_every: int,
    identity: Mapping[str, Any],
    mend: str,
    checkpoint_name: str | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **settings: Any,
) -> pl.Trainer:
    """Return the Trainer of a run that leaves its metrics and `last.ckpt` in its folder, to be resumed from.

    Args:
        folder: folder of the run.
        max_steps: see `make_trainer`.
        checkpoint_every: steps between two checkpoints.
        identity: the settings that make the run, see `RunIdentity`.
        mend: what to change where the loss is not finite, an imperative clause.
        checkpoint_name: file name of the checkpoints beside `last.ckpt`; None = Lightning's own.
        callbacks: further ones.
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
    watching = [RunIdentity(identity), FiniteLoss(mend, folder)]
    return make_trainer(
        max_steps=max_steps,
        callbacks=[*callbacks, *watching, checkpoints],
        folder=folder,
        plugins=[WholeCheckpoints()],
        **settings,
    )


def make_bare_trainer(*, max_steps: int, **settings: Any) -> pl.Trainer:
    """Return a Trainer that writes neither metrics nor checkpoints; see `make_trainer`."""
    return make_trainer(max_steps=max_steps, logger=False, enable_checkpointing=False, **settings)
