"""Training of a small backbone from scratch, with label dropout (DDPM, eq. 14; rectified flow, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.diffusion.prediction import min_snr_weight, target
from l2c.diffusion.schedule import schedule_of
from l2c.io.names import chosen
from l2c.io.seeds import Stream
from l2c.testbeds.muon import MuonAdamW
from l2c.testbeds.settings import OPTIMIZERS
from l2c.training.label_dropout import drop_labels

LAST_RATE = 0.01  # the learning rate at the end, as a share of the peak


def decay_start(max_steps: int, decay_share: float) -> int:
    """Return the step from which the learning rate falls in the last part of the steps."""
    return round((1 - decay_share) * max_steps)


class LitBackbone(pl.LightningModule):
    """Mean squared error of what the backbone predicts; warm-up, a constant learning rate, a cosine down to 1 %.

    Args:
        backbone: the network, in train mode; its conventions name the noise schedule and what it predicts.
        optimizer: `adamw`, or `muon` for the blocks' matrices with AdamW for the rest.
        learning_rate: peak learning rate of AdamW.
        muon_learning_rate: peak learning rate of Muon.
        weight_decay: weight decay of both.
        max_steps: step at which the cosine ends.
        warmup_steps: steps of linear warm-up.
        decay_share: the part of the steps that the cosine takes, in (0, 1]; 1 = no constant part.
        label_dropout: share of labels replaced by the null label.
        min_snr_gamma: weigh the error of the data by min(SNR, gamma); None = the error of the prediction as it is.
        seed: seed of times, noise and label dropout.

    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        learning_rate: float,
        max_steps: int,
        optimizer: str = "adamw",
        muon_learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        decay_share: float = 1.0,
        label_dropout: float = 0.1,
        min_snr_gamma: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        chosen("optimizer", optimizer, OPTIMIZERS)
        if not 0 < decay_share <= 1:
            raise ValueError(f"decay_share must lie in (0, 1], got {decay_share}")
        self.backbone = backbone
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.muon_learning_rate = muon_learning_rate
        self.weight_decay = weight_decay
        self.max_steps = max_steps
        self.warmup_steps = warmup_steps
        self.decay_start = decay_start(max_steps, decay_share)
        self.label_dropout = label_dropout
        self.min_snr_gamma = min_snr_gamma
        self.seed = seed
        self.schedule = schedule_of(backbone.conventions)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the mean squared error of the prediction on images (N, C, H, W)."""
        x_0, y = batch
        stream = Stream("times and noise of a backbone's training step", self.seed, self.global_step)
        t, *levels = self.schedule.draw(len(x_0), stream)
        noise = stream(tuple(x_0.shape)).to(x_0)
        y = drop_labels(y, self.backbone.conventions.null_label, self.label_dropout, stream)
        alpha, sigma = (level.view(-1, 1, 1, 1).to(x_0) for level in levels)
        predicted = self.backbone(alpha * x_0 + sigma * noise, t.to(x_0.device), y)
        wanted = target(self.schedule.prediction, x_0, noise, alpha, sigma)
        error = (predicted[:, : x_0.shape[1]] - wanted).square()
        if self.min_snr_gamma is not None:
            error = error * min_snr_weight(self.schedule.prediction, alpha, sigma, self.min_snr_gamma)
        loss = error.mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _learning_rate_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        share = min(1.0, max(0, step - self.decay_start) / max(1, self.max_steps - self.decay_start))
        return warmup * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share)))

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, stepped once per training step."""
        weights = {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}
        if self.optimizer == "muon":
            optimizer = self._muon(weights)
        else:
            optimizer = torch.optim.AdamW(weights.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _muon(self, weights: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """Return an optimiser: Muon for matrices inside module lists, AdamW otherwise."""
        matrices = {name for name, p in weights.items() if "blocks." in name and p.ndim == 2}
        return MuonAdamW(
            [p for name, p in weights.items() if name in matrices],
            [p for name, p in weights.items() if name not in matrices],
            muon_learning_rate=self.muon_learning_rate,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
