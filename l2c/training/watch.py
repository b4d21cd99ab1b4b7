"""Callbacks that watch a training: losses stay finite, signals end it with a checkpoint, a bar shows its steps."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from torch.distributed import DistError
from tqdm.auto import tqdm

from l2c.data.processes import is_first_process
from l2c.io.memory import out_of_memory
from l2c.io.names import shown
from l2c.training.checkpoint_files import LAST, checkpoints_in, free_name
from l2c.training.other_processes import looking_after, lost

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))  # not on Windows


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
    """End the work of a Trainer by Ctrl-C, SIGTERM or SIGHUP (a terminal that closes), with the usual exit codes.

    They are 128 + the signal's number: 130, 143, 129. A training that keeps checkpoints ends after the step of the
    signal, with a checkpoint to go on from; all else ends at once. A second signal ends the process. A signal that
    the process ignores stays ignored: Ctrl-C in a job that a script put into the background, SIGHUP under `nohup`.
    A training whose folder is moved or removed meanwhile ends with a checkpoint where the folder was.

    Args:
        folder: folder of the run, gets `last.ckpt`; None where no checkpoints are kept.

    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._received: int | None = None
        self._handled: tuple[signal.Signals, ...] = ()
        self._ignored: tuple[signal.Signals, ...] = ()
        self._waits = False  # for the end of a step
        self._place: tuple[int, int] | None = None  # what the folder is on its disk

    @contextmanager
    def watching(self, trainer: pl.Trainer) -> Iterator[None]:
        """Handle the signals in the `with` block, in which the Trainer fits or predicts.

        Lightning alone would end Ctrl-C with the code 1, and take SIGTERM as a note until a step is done. Its own
        handler, installed within, calls the one that it finds. Other threads than the main one get no signals.

        Raises:
            SystemExit: if a signal came that is not waited with.

        """
        self._received = None
        before = {number: signal.getsignal(number) for number in SIGNALS}
        if threading.current_thread() is threading.main_thread():
            self._ignored = tuple(number for number in SIGNALS if before[number] == signal.SIG_IGN)
            self._handled = tuple(number for number in SIGNALS if number not in self._ignored)
        self._handle()
        try:
            yield
        except BaseException:
            if self._received is None or self._waits:
                raise
        finally:
            for number in (*self._handled, *self._ignored):
                signal.signal(number, before[number] or signal.SIG_DFL)  # None: no handler of Python's
            self._waits, self._handled, self._ignored = False, (), ()
        if self._received is not None:
            self._leave(trainer, self._received)

    def _handle(self) -> None:
        for number in self._handled:
            signal.signal(number, self._note)
        self._keep_ignored()

    def _keep_ignored(self) -> None:
        """Ignore a signal for which Lightning has set its handler all the same."""
        for number in self._ignored:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for each in self._handled:
            signal.signal(each, signal.SIG_DFL)
        if not self._waits:
            raise SystemExit(128 + number)

    def _leave(self, trainer: pl.Trainer, number: int) -> NoReturn:
        """Say that nothing more is done, and end; processes that Lightning started end too."""
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(signal.SIGKILL)
        if is_first_process():
            kept = self.folder is not None and checkpoints_in(self.folder)
            more = " with resume=auto in this folder to go on" if kept else ""
            _say(f"stopped by {signal.Signals(number).name}; run the same command again{more}")
        raise SystemExit(128 + number)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the end of a step from now on, without Lightning's handler, which ends trainings too."""
        self._place = _on_disk(self.folder) if trainer.is_global_zero else None
        if self.folder is not None and self._handled:
            self._waits = True
            self._handle()
        else:
            self._keep_ignored()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep ignoring what was ignored before."""
        self._keep_ignored()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint and end, if a signal came or the folder is gone, and the step is complete.

        Raises:
            SystemExit: if a signal came; the code is the signal's.
            OSError: if the folder is not where it was.

        """
        if self.folder is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        gone = self._place is not None and self._place != _on_disk(self.folder, unsure=self._place)
        stop = gone or self._received is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop:
            return
        path = self.folder / LAST
        path = free_name(path) if gone and path.exists() else path  # of another run
        trainer.save_checkpoint(path)
        if gone:
            raise OSError(
                f"{shown(self.folder, 300)} was moved or removed while the training went on, which ended after step "
                f"{trainer.global_step} of {trainer.max_steps}; wrote {shown(path, 300)}; run the same command with "
                "resume=PATH of that file to go on"
            )
        number = self._received or signal.SIGTERM
        if trainer.is_global_zero:
            _say(
                f"stopped by {signal.Signals(number).name} after step {trainer.global_step} of "
                f"{trainer.max_steps}; wrote {path}; run the same command with resume=auto in this folder to go on"
            )
        raise SystemExit(128 + number)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait no longer: the last checkpoint is written.

        Raises:
            SystemExit: if a signal came after the last step.

        """
        self._waits = False
        if self._received is not None:
            raise SystemExit(128 + self._received)


def _on_disk(folder: Path | None, unsure: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Return which folder it is whatever its name; None where there is none, `unsure` where the disk fails to say."""
    if folder is None:
        return None
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return unsure
    return found.st_dev, found.st_ino


def _say(line: str) -> None:
    """Write a line to stderr, where it is still there: SIGHUP comes when its terminal closes."""
    with suppress(OSError):
        sys.stderr.write(f"\n{line}\n")


@contextmanager
def watched(trainer: pl.Trainer) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM, SIGHUP and the end of another process in the `with` block, in which a Trainer works.

    Raises:
        SystemExit: if a signal came, see `StopBySignal`.
        ConnectionError: if another process of the run has ended, so that this one would wait for it for ever.

    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    stop = next(one for one in callbacks if isinstance(one, StopBySignal))
    try:
        with looking_after(trainer), stop.watching(trainer):
            yield
    except RuntimeError as error:
        if trainer.world_size == 1 or out_of_memory(error) or not _is_of_connections(error):
            raise
        raise ConnectionError(lost(trainer.global_rank, trainer.world_size, "another one")) from error


def _is_of_connections(error: RuntimeError) -> bool:
    """Return whether an error is one of torch's connections of processes; gloo's have no type of their own."""
    return isinstance(error, DistError) or "gloo" in str(error)


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
