"""One run of backbone training, from a config to a file of averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from omegaconf import DictConfig
from safetensors.torch import save_file

from l2c.backbones.presets import build_backbone
from l2c.io.atomic import check_writable, replacing
from l2c.testbeds.lit_backbone import LitBackbone
from l2c.testbeds.pixel_data import pixel_data
from l2c.training.trainer import check_checkpoint, make_run_trainer


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
            trainer.save_checkpoint(self.folder / "before_decay.ckpt")


def train_backbone(cfg: DictConfig, run_folder: Path) -> Path:
    """Train as `configs/train_backbone.yaml` says, write the EMA weights in fp16, return their path."""
    torch.set_num_threads(cfg.num_threads)
    pl.seed_everything(cfg.seed, verbose=False)
    module = LitBackbone(
        build_backbone(cfg.model),
        optimizer=cfg.optimizer,
        learning_rate=cfg.learning_rate,
        muon_learning_rate=cfg.muon_learning_rate,
        weight_decay=cfg.weight_decay,
        max_steps=cfg.max_steps,
        warmup_steps=cfg.warmup_steps,
        decay_share=cfg.decay_share,
        label_dropout=cfg.label_dropout,
        min_snr_gamma=cfg.min_snr_gamma,
        seed=cfg.seed,
    )
    if cfg.resume is not None:
        check_checkpoint(cfg.resume, "backbone.", module.backbone.state_dict())
    data = pixel_data(
        cfg.dataset,
        image_shape=module.backbone.input_shape,
        num_labels=module.backbone.num_labels,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        **cfg.dataset_options,
    )
    output = Path(cfg.output)
    check_writable(output)
    trainer = make_run_trainer(
        run_folder,
        accelerator=cfg.accelerator,
        devices=1,
        max_steps=cfg.max_steps,
        gradient_clip_val=cfg.gradient_clip,
        checkpoint_every=200,
        callbacks=[EMAWeightAveraging(decay=cfg.ema_decay), KeepBeforeDecay(run_folder, module.decay_start)],
        log_every_n_steps=50,
    )
    trainer.fit(module, data, ckpt_path=cfg.resume)
    weights = {name: value.half().contiguous() for name, value in module.backbone.state_dict().items()}
    with replacing(output) as temporary:
        save_file(weights, temporary)
    return output
