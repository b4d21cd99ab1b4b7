"""The Lightning module that trains routers: only they are optimised and checkpointed."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from l2c.backbones.digest import shared
from l2c.data.share import parts
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import PairSource
from l2c.training.routers.routers import Routers


class LitRouter(pl.LightningModule):
    """Train the router of one evaluation per step.

    Args:
        routers: the routers; all that a checkpoint holds.
        pairs: source of the training pairs; holds the frozen backbone.
        objective: the objective to minimise.
        learning_rate: learning rate of AdamW, without weight decay.
        clamp: logits are kept in [-clamp, clamp] after each step.
        threshold: threshold of the logged share of removed layers.

    """

    def __init__(
        self,
        routers: Routers,
        pairs: PairSource,
        objective: LearningToCache,
        *,
        learning_rate: float,
        clamp: float = 5.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.routers = routers
        self.backbone = objective.backbone  # a submodule, so that Lightning moves it to the device
        self.pairs = pairs
        self.objective = objective
        self.learning_rate = learning_rate
        self.clamp = clamp
        self.threshold = threshold
        self._errors: list[Tensor] = []  # of the accumulated parts of this step
        self.strict_loading = False  # a checkpoint holds no backbone, see on_save_checkpoint
        # Weights that processes share (FSDP2) are not for DDP to send around.
        sharded = [f"backbone.{name}" for name, weight in self.backbone.named_parameters() if shared([weight])]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, sharded)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the objective of the router that this step visits, on a batch of the data module."""
        step = self.global_step
        of_step = parts(self._trainer)
        pair = self.pairs.draw(batch, step, of_step[batch_index % len(of_step)])
        loss = self.objective(pair, self.routers.row(self.pairs.evaluation(step)))
        self.log_dict(
            {"train/error": loss.error.detach(), "train/penalty": loss.penalty.detach()},
            batch_size=len(pair.x),
        )
        self.log("train/loss", loss.loss.detach(), prog_bar=True, batch_size=len(pair.x))
        self._errors.append(loss.error.detach())
        return loss.loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, clamp the logits and let the objective adapt, all before a checkpoint of the step is written."""
        optimizer.step(closure=optimizer_closure)
        self.routers.clamp_(self.clamp)
        error = self.trainer.strategy.reduce(torch.stack(self._errors).mean(), reduce_op="mean")
        self._errors.clear()
        self.objective.after_step(self.routers, float(error), self.global_step + 1)  # not yet counted

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Log the share of layers that the threshold would remove."""
        self.log("removed", self.routers.removed_fraction(self.threshold), prog_bar=True)

    @property
    def idle(self) -> list[Tensor]:
        """Weights that the optimiser may have no state of: routers that no step has visited yet."""
        return list(self.routers.parameters())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the routers."""
        return torch.optim.AdamW(self.routers.parameters(), lr=self.learning_rate, weight_decay=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen backbone out of the checkpoint."""
        checkpoint["state_dict"] = {
            key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("backbone.")
        }
        checkpoint["objective"] = dict(self.objective.state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the objective's state."""
        self.objective.load_state(checkpoint.get("objective", {}))
