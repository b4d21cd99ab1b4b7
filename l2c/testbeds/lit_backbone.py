"""Training of a small backbone from scratch: noise prediction with label dropout (DDPM, eq. 14)."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.diffusion import NoiseSchedule
from l2c.io.seeds import Stream
from l2c.training.label_dropout import drop_labels


class LitBackbone(pl.LightningModule):
    """Noise prediction with AdamW, linear warm-up and a cosine to 1 % of the learning rate.

    Args:
        backbone: the network, in train mode; its conventions name the noise schedule.
        learning_rate: peak learning rate.
        weight_decay: of AdamW.
        max_steps: length of the cosine.
        warmup_steps: steps of linear warm-up.
        label_dropout: share of labels replaced by the null label.
        seed: seed of times, noise and label dropout.

    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        learning_rate: float,
        max_steps: int,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        label_dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_steps = max_steps
        self.warmup_steps = warmup_steps
        self.label_dropout = label_dropout
        self.seed = seed
        conventions = backbone.conventions
        self.schedule = NoiseSchedule(conventions.schedule, conventions.first_timestep)
        abar = torch.from_numpy(self.schedule.alphas_cumprod)
        self.alpha = abar.sqrt().float()  # (T,)
        self.sigma = (1 - abar).sqrt().float()  # (T,)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the mean squared error of the predicted noise on images (N, C, H, W)."""
        x_0, y = batch
        stream = Stream("times and noise of a backbone's training step", self.seed, self.global_step)
        index = stream.integers(self.schedule.num_steps, len(x_0))
        noise = stream(tuple(x_0.shape)).to(x_0)
        y = drop_labels(y, self.backbone.conventions.null_label, self.label_dropout, stream)
        alpha = self.alpha[index].view(-1, 1, 1, 1).to(x_0)
        sigma = self.sigma[index].view(-1, 1, 1, 1).to(x_0)
        t = (index + self.schedule.first_timestep).to(x_0.device)
        predicted = self.backbone(alpha * x_0 + sigma * noise, t, y)
        loss = torch.nn.functional.mse_loss(predicted[:, : x_0.shape[1]], noise)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _learning_rate_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.max_steps))))

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule, stepped once per training step."""
        weights = [p for p in self.backbone.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
