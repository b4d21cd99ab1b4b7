"""Heat maps of the routers, drawn while they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from l2c.report.figures import router_heatmap, save_figure
from l2c.training.routers.lit_router import LitRouter


class RouterHeatmap(pl.Callback):
    """Send a heat map of all routers to the loggers that take images, and keep the latest as a PNG.

    Args:
        folder: folder of `routers.png`.
        timesteps: t of each evaluation, for the axis.
        every_n_steps: steps between two pictures.

    """

    def __init__(self, folder: Path, timesteps: tuple[float, ...], every_n_steps: int = 100) -> None:
        self.folder = folder
        self.timesteps = timesteps
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw after every n-th step."""
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the final routers."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, LitRouter)
        if not trainer.is_global_zero:
            return
        figure = router_heatmap(
            module.routers.weights().float().cpu(),
            module.routers.evaluations,
            self.timesteps,
            step=trainer.global_step,
            layers=module.backbone.layer_names,
        )
        png = self.folder / "routers.png"
        save_figure(figure, png)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # CSV takes no images, the PNG is there
                logger.log_image(key="routers", images=[str(png)], step=trainer.global_step)
