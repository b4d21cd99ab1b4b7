"""One run of classifier training on the digits, with a fifth of them held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from l2c.data.step_sampler import StepBatchSampler
from l2c.io.atomic import check_writable, replacing
from l2c.testbeds.digits import digits
from l2c.testbeds.digits_classifier import DigitsClassifier
from l2c.testbeds.settings import ClassifierTraining
from l2c.training.step_random import step_generator
from l2c.training.trainer import make_bare_trainer, seed_everything
from l2c.training.watch import FiniteLoss


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
        generator = step_generator(self.seed, self.global_step)
        down, right = (int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
        shifted = padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]
        noisy = shifted + 0.1 * torch.randn(shifted.shape, generator=generator).to(shifted)
        loss = torch.nn.functional.cross_entropy(self.classifier.logits(noisy), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with one cosine down to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_classifier(settings: ClassifierTraining) -> TrainedClassifier:
    """Train the classifier and write its weights.

    Raises:
        ValueError: if the loss is not finite.
        OSError: if the file cannot be written.

    """
    torch.set_num_threads(settings.num_threads)
    seed_everything(settings.seed)
    check_writable(settings.output)
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
    held_out, used = order[: len(order) // 5], order[len(order) // 5 :]
    sampler = StepBatchSampler(len(used), settings.batch_size, seed=settings.seed)
    loader = DataLoader(TensorDataset(images[used], labels[used]), batch_sampler=sampler)
    module = LitClassifier(settings.learning_rate, settings.max_steps, settings.seed)
    trainer = make_bare_trainer(
        accelerator="cpu", max_steps=settings.max_steps, callbacks=[FiniteLoss("lower learning_rate")]
    )
    trainer.fit(module, loader)
    classifier = module.classifier.eval()
    path = Path(settings.output)
    with replacing(path) as temporary:
        save_file(classifier.state_dict(), temporary)
    return TrainedClassifier(path, classifier.accuracy(images[held_out], labels[held_out]), len(held_out))
