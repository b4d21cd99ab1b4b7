"""One run of classifier training on the digits, with a fifth of them held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from l2c.data.step_sampler import StepBatchSampler
from l2c.io.atomic import check_writable, replacing
from l2c.io.seeds import Stream
from l2c.testbeds.digits import digits
from l2c.testbeds.digits_classifier import DigitsClassifier
from l2c.training.trainer import make_bare_trainer


@dataclass(frozen=True)
class TrainedClassifier:
    """What a run leaves behind: the weights' path and the share of held-out digits read right."""

    path: Path
    held_out_accuracy: float
    num_held_out: int


class LitClassifier(pl.LightningModule):
    """Cross entropy on digits shifted by up to a pixel, with a little noise."""

    def __init__(self, learning_rate: float, max_steps: int, seed: int) -> None:
        super().__init__()
        self.classifier = DigitsClassifier()
        self.learning_rate = learning_rate
        self.max_steps = max_steps
        self.seed = seed

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the cross entropy of images (N, 1, 8, 8) and labels (N,)."""
        images, labels = batch
        stream = Stream("shifts and noise of a classifier's training step", self.seed, self.global_step)
        down, right = stream.integers(2, 2, start=-1).tolist()
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
        shifted = padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]
        noisy = shifted + 0.1 * stream(tuple(shifted.shape)).to(shifted)
        loss = torch.nn.functional.cross_entropy(self.classifier.logits(noisy), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with one cosine down to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_classifier(cfg: DictConfig) -> TrainedClassifier:
    """Train as `configs/train_classifier.yaml` says and write the weights."""
    torch.set_num_threads(cfg.num_threads)
    pl.seed_everything(cfg.seed, verbose=False)
    check_writable(cfg.output)
    images, labels = digits()
    order = Stream("held-out digits", cfg.seed).permutation(len(images))
    held_out, used = order[: len(order) // 5], order[len(order) // 5 :]
    sampler = StepBatchSampler(len(used), cfg.batch_size, seed=cfg.seed)
    loader = DataLoader(TensorDataset(images[used], labels[used]), batch_sampler=sampler)
    module = LitClassifier(cfg.learning_rate, cfg.max_steps, cfg.seed)
    trainer = make_bare_trainer(accelerator="cpu", max_steps=cfg.max_steps)
    trainer.fit(module, loader)
    classifier = module.classifier.eval()
    path = Path(cfg.output)
    with replacing(path) as temporary:
        save_file(classifier.state_dict(), temporary)
    return TrainedClassifier(path, classifier.accuracy(images[held_out], labels[held_out]), len(held_out))
