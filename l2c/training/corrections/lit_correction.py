"""The Lightning module of a distillation: its steps, its log and its checkpoints."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from l2c.calibration.distillation import Distillation
from l2c.sampling.correction import has_slopes


class LitCorrection(pl.LightningModule):
    """Train slopes, scales and shifts of a graph's reused layers towards the uncached sampler.

    A training step is a trajectory of its batch.

    Args:
        distillation: the trained parameters and their loss.
        max_steps: steps over which the learning rate falls to 0.

    """

    def __init__(self, distillation: Distillation, *, max_steps: int = 100) -> None:
        super().__init__()
        self.distillation = distillation
        self.max_steps = max_steps
        self.strict_loading = False  # a checkpoint holds no backbone, see on_save_checkpoint

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of noise (N, C, H, W) and labels (N,)."""
        noise, labels = batch
        loss, error = self.distillation.loss(noise, labels if self.distillation.backbone.num_labels else None)
        if error is not None:
            self.log("train/error", error)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    @property
    def idle(self) -> list[Tensor]:
        """Weights that the optimiser has no state of: slopes that nothing of the graph reads."""
        return [] if has_slopes(self.distillation.graph) else [self.distillation.slopes]

    def configure_optimizers(self) -> Any:
        """Return the distillation's optimiser, its schedule stepped once per training step."""
        optimizer, schedule = self.distillation.optimizer(self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen backbone out of the checkpoint."""
        kept = {f"distillation.{name}" for name in self.distillation.trained()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}
