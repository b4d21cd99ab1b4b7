"""One run of classifier training on the digits or the emoji, with a fifth of them held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from l2c.data.step_sampler import StepBatchSampler
from l2c.io.atomic import output_file
from l2c.io.seeds import Stream
from l2c.io.tensors import holds_tensors, write_tensors
from l2c.testbeds.digits import digits
from l2c.testbeds.emoji import emoji
from l2c.testbeds.emoji_classifier import EmojiClassifier
from l2c.testbeds.emoji_data import EmojiDataModule
from l2c.testbeds.picture_classifier import PictureClassifier
from l2c.testbeds.readers import READERS
from l2c.testbeds.settings import ClassifierTraining
from l2c.training.trainer import make_bare_trainer, seed_everything
from l2c.training.watch import FiniteLoss, watched

HELD_OUT = 5  # one of so many


@dataclass(frozen=True)
class TrainedClassifier:
    """The result of a run: the weights' path and the share of held-out pictures read right."""

    path: Path
    held_out_accuracy: float
    num_held_out: int


@dataclass(frozen=True)
class Parts:
    """The pictures of a run.

    Attributes:
        batches: endless batches of images (N, C, H, W) in [-1, 1] and labels (N,) to train on.
        images: (M, C, H, W), held out.
        labels: (M,), of those.

    """

    batches: DataLoader[Any]
    images: Tensor
    labels: Tensor


def shifted(images: Tensor, stream: Stream) -> Tensor:
    """Shift black pictures (N, C, H, W) by up to a pixel, all of a batch alike."""
    down, right = (1 + stream.integers(2, 2, start=-1)).tolist()
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[:, :, down : down + height, right : right + width]


def warped(images: Tensor, stream: Stream) -> Tensor:
    """Turn pictures (N, C, H, W) on white by up to 15 degrees, scale by up to 15 %, shift by up to 3 / 32."""
    angle, zoom, across, down = (2 * stream.uniform(4, len(images)) - 1).to(images)
    angle, zoom = angle * math.pi / 12, 1 + 0.15 * zoom
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([torch.stack([cos, -sin, across * 6 / 32], 1), torch.stack([sin, cos, down * 6 / 32], 1)], 1)
    grid = torch.nn.functional.affine_grid(rows, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images - 1, grid, align_corners=False) + 1  # outside is 0, white


class LitClassifier(pl.LightningModule):
    """Cross entropy on pictures that are moved about, with a little noise.

    Args:
        classifier: in train mode.
        move: moves a batch of pictures by the numbers of a stream.
        label_smoothing: share of a label's weight that goes to all classes alike.
        learning_rate: learning rate of AdamW, with one cosine down to zero.
        max_steps: length of the cosine.
        seed: seed of shifts and noise.

    """

    def __init__(
        self,
        classifier: PictureClassifier,
        *,
        move: Callable[[Tensor, Stream], Tensor],
        label_smoothing: float,
        learning_rate: float,
        max_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.move = move
        self.label_smoothing = label_smoothing
        self.learning_rate = learning_rate
        self.max_steps = max_steps
        self.seed = seed

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the cross entropy of images (N, C, H, W) and labels (N,)."""
        images, labels = batch
        stream = Stream("shifts and noise of a classifier's training step", self.seed, self.global_step)
        images = self.move(images, stream)
        noisy = images + 0.1 * stream(tuple(images.shape)).to(images)
        logits = self.classifier.logits(noisy)
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with one cosine down to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _shuffled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of what is held out and of what is trained on."""
    order = Stream("held-out pictures", seed).permutation(count)
    return order[: count // HELD_OUT], order[count // HELD_OUT :]


def _digits(batch_size: int, seed: int) -> Parts:
    images, labels = digits()
    held_out, used = _shuffled(len(images), seed)
    sampler = StepBatchSampler(len(used), batch_size, seed=seed)
    loader = DataLoader(TensorDataset(images[used], labels[used]), batch_sampler=sampler)
    return Parts(loader, images[held_out], labels[held_out])


def _emoji(batch_size: int, seed: int) -> Parts:
    """Hold out whole families, so that no variant in another skin tone has been seen; count each family once."""
    pictures = emoji()
    families = pictures.families.unique()
    held_out = families[_shuffled(len(families), seed)[0]]
    apart = torch.isin(pictures.families, held_out)
    shown = pictures.where(apart & ~pictures.toned)
    loader = EmojiDataModule(batch_size, seed, pictures=pictures.where(~apart)).train_dataloader()
    return Parts(loader, shown.images.float() / 127.5 - 1, shown.labels)


def train_classifier(settings: ClassifierTraining) -> TrainedClassifier:
    """Train the classifier of a data set and write its weights.

    Raises:
        FileNotFoundError: if the pictures are not there; the message says how to get them.
        ValueError: if the loss is not finite.
        OSError: if the file cannot be written.
        SystemExit: if Ctrl-C, SIGTERM or SIGHUP comes; the code is 130, 143 or 129.

    """
    torch.set_num_threads(settings.num_threads)
    seed_everything(settings.seed)
    classifier = READERS[settings.dataset]()
    with output_file("output", settings.output, ours=lambda it: holds_tensors(it, classifier.state_dict())) as path:
        return _trained(classifier, settings, path)


def _trained(classifier: PictureClassifier, settings: ClassifierTraining, path: Path) -> TrainedClassifier:
    """Train a classifier and write its weights."""
    digital = settings.dataset == "digits"
    parts = (_digits if digital else _emoji)(settings.batch_size, settings.seed)
    module = LitClassifier(
        classifier,
        move=shifted if digital else warped,
        label_smoothing=0.0 if digital else 0.1,
        learning_rate=settings.learning_rate,
        max_steps=settings.max_steps,
        seed=settings.seed,
    )
    trainer = make_bare_trainer(
        accelerator="cpu", max_steps=settings.max_steps, callbacks=[FiniteLoss("lower learning_rate")]
    )
    with watched(trainer):
        trainer.fit(module, parts.batches)
    classifier.eval()
    if isinstance(classifier, EmojiClassifier):
        classifier.keep_statistics(emoji())
    write_tensors(path, classifier.state_dict())
    return TrainedClassifier(path, classifier.accuracy(parts.images, parts.labels), len(parts.labels))
