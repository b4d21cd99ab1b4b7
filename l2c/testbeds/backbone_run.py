"""One run of backbone training, from a fresh network to a file of averaged weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from l2c.backbones.backbone import Backbone
from l2c.data.numbered import identity_of
from l2c.io.atomic import output_file
from l2c.io.memory import halved, memory_explained, remedies
from l2c.io.tensors import holds_tensors, write_tensors
from l2c.testbeds.lit_backbone import LitBackbone, decay_start
from l2c.testbeds.settings import BackboneTraining
from l2c.training.checkpoint_files import BEFORE_DECAY
from l2c.training.checkpoints import RUN, check_checkpoint, read_checkpoint
from l2c.training.restoring import check_restorable, fit
from l2c.training.run_folder import claimed, is_run, resume_from
from l2c.training.trainer import make_run_trainer


class KeepBeforeDecay(pl.Callback):
    """Keep the checkpoint at which the learning rate begins to fall, to train for longer from there.

    Args:
        folder: where `before_decay.ckpt` is written.
        step: when; 0 = never.

    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.step = step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint when its step is done."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder / BEFORE_DECAY)


def train_backbone(
    backbone: Backbone, data: pl.LightningDataModule, settings: BackboneTraining, run_folder: Path
) -> Path:
    """Train a backbone, write the EMA weights in fp16, return their path.

    Args:
        backbone: the network with fresh weights, in train mode.
        data: images (N, C, H, W) and labels (N,).
        settings: settings of the run.
        run_folder: folder of metrics and checkpoints.

    Raises:
        ValueError, FileNotFoundError: if a setting does not fit, or the loss is not finite.
        OSError: if a folder cannot be written.
        MemoryError: if memory runs out; the message says what lowers the use.
        SystemExit: if Ctrl-C, SIGTERM or SIGHUP comes; the code is 130, 143 or 129.

    """
    torch.set_num_threads(settings.num_threads)
    module = _module(backbone, settings)
    named = {"model": backbone.conventions.name, "data": type(data).__name__}
    identity = {**named, **settings.identity(), **identity_of(data)}
    resumed = resume_from(settings.resume, run_folder)
    if resumed is not None:
        said, restarts = _length_there(resumed, settings)
        check_checkpoint(
            resumed,
            "backbone.",
            backbone.state_dict(),
            settings={**identity, **said},
            max_steps=settings.max_steps,
            word="max_steps",
        )
        identity |= restarts
    trainer = make_run_trainer(
        run_folder,
        accelerator=settings.accelerator,
        devices=1,
        max_steps=settings.max_steps,
        gradient_clip_val=settings.gradient_clip,
        checkpoint_every=200,
        identity=identity,
        mend="lower learning_rate",
        callbacks=[EMAWeightAveraging(decay=settings.ema_decay), KeepBeforeDecay(run_folder, module.decay_start)],
        log_every_n_steps=50,
    )
    check_restorable(resumed, module, trainer)
    sentence = (
        f"out of memory in training {backbone.conventions.name} with batch_size={settings.batch_size}; "
        f"{remedies(halved('batch_size', settings.batch_size))}"
    )
    with _output(backbone, settings, Path(run_folder)) as output, claimed(run_folder, identity, resumed=resumed):
        with memory_explained(lambda: sentence):
            fit(trainer, module, data, resumed)
        _write(backbone, output)
    return output


def _output(backbone: Backbone, settings: BackboneTraining, folder: Path) -> AbstractContextManager[Path]:
    """Return what holds the file of the weights; those of an earlier run are replaced."""
    own = not settings.output and is_run(folder)
    wanted = settings.output or folder / f"{backbone.conventions.name}.safetensors"
    return output_file("output", wanted, ours=lambda path: own or holds_tensors(path, backbone.state_dict()))


def _module(backbone: Backbone, settings: BackboneTraining) -> LitBackbone:
    return LitBackbone(
        backbone,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        muon_learning_rate=settings.muon_learning_rate,
        weight_decay=settings.weight_decay,
        max_steps=settings.max_steps,
        warmup_steps=settings.warmup_steps,
        decay_share=settings.decay_share,
        label_dropout=settings.label_dropout,
        min_snr_gamma=settings.min_snr_gamma,
        seed=settings.seed,
    )


def _length_there(checkpoint: Path, settings: BackboneTraining) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a checkpoint may say of its run's length, and what this run's checkpoints are to say of restarts.

    Another `max_steps` makes the same run if the learning rate has begun to fall in neither of them. A finished run
    goes on by a restart: the learning rate rises again to that of a run of the new length. Checkpoints name the
    steps at which their run was restarted.
    """
    content = read_checkpoint(checkpoint)
    there = {name: content[RUN]["settings"].get(name) for name in ("max_steps", "restarts")}
    restarts = {"restarts": there["restarts"]} if isinstance(there["restarts"], list) else {}
    if type(there["max_steps"]) is not int:
        return restarts, restarts
    steps, step = {"max_steps": there["max_steps"]}, content["global_step"]
    if step == there["max_steps"] < settings.max_steps:
        return steps | restarts, {"restarts": [*restarts.get("restarts", []), step]}
    constant = step <= decay_start(min(there["max_steps"], settings.max_steps), settings.decay_share)
    return restarts | (steps if constant else {}), restarts


def _write(backbone: Backbone, output: Path) -> None:
    """Write the weights in fp16, unless one is not finite."""
    write_tensors(output, {name: value.half() for name, value in backbone.state_dict().items()})
