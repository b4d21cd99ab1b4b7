"""Callbacks that watch a training: losses stay finite, signals end it with a checkpoint, a bar shows its steps."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from tqdm.auto import tqdm

from l2c.training.run_folder import LAST

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class FiniteLoss(pl.Callback):
    """Stop before a loss that is not finite reaches the weights.

    Args:
        mend: advice on what to change, an imperative clause.
        folder: folder of the last good checkpoint; None where none are written.

    """

    def __init__(self, mend: str, folder: Path | None = None) -> None:
        self.mend = mend
        self.folder = folder

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Refuse a loss.

        Raises:
            ValueError: if it is not finite; the message names the step.

        """
        value = float(loss.detach())
        if math.isfinite(value):
            return
        kept = ""
        if self.folder is not None and (self.folder / LAST).is_file():
            kept = f"; {self.folder / LAST} is the last good checkpoint"
        raise ValueError(f"the loss is {value} at step {trainer.global_step + 1}{kept}; {self.mend}")


class StopBySignal(pl.Callback):
    """End a training after the step in which Ctrl-C or SIGTERM came, with a checkpoint to go on from.

    The exit codes are the usual ones, 128 + the signal's number: 130 and 143. A second signal ends the process at
    once.

    Args:
        folder: folder of the run; gets `last.ckpt`.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers; only possible in the main thread."""
        try:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:
            self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint and exit, if a signal came and the step is complete.

        Raises:
            SystemExit: if a signal came; the code is the signal's.

        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = self._received is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop or trainer.global_step >= trainer.max_steps:
            return
        path = self.folder / LAST
        trainer.save_checkpoint(path)
        number = self._received or signal.SIGTERM
        if trainer.is_global_zero:
            sys.stderr.write(
                f"\nstopped by {signal.Signals(number).name} after step {trainer.global_step} of "
                f"{trainer.max_steps}; wrote {path}; run the same command with resume=auto in this folder to go on\n"
            )
        raise SystemExit(128 + number)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StepBar(ProgressBar):
    """A bar of optimiser steps, or of batches where images are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._shown = True

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        """Show the bar."""
        self._shown = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step that the run starts from."""
        self._open("training", "step", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on, with the metrics beside the bar."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.set_postfix(shown_metrics(trainer.progress_bar_metrics), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar of batches."""
        total = sum(int(count) for count in trainer.num_predict_batches)
        self._open("drawing", "batch", total, 0)

    def on_predict_batch_end(self, *arguments: Any, **more: Any) -> None:
        """Move on by a batch."""
        if self._bar is not None:
            self._bar.update()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _open(self, what: str, unit: str, total: int, initial: int) -> None:
        self._bar = tqdm(
            total=total, initial=initial, desc=what, unit=unit, disable=not self._shown, dynamic_ncols=True
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def shown_metrics(metrics: Any) -> dict[str, str]:
    """Return metrics as a bar shows them: `train/loss` as `loss` in scientific notation, `removed` in percent."""
    return {
        name.removeprefix("train/"): f"{100 * float(value):.0f} %" if name == "removed" else f"{float(value):.2e}"
        for name, value in metrics.items()
        if name != "v_num"
    }
