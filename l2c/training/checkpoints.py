"""Checkpoints: written whole, checked for finite values, and identified by the settings of their run."""

from __future__ import annotations

import hashlib
import io
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from l2c.backbones.weights import reason_of
from l2c.io.atomic import replacing
from l2c.io.names import counted, differences, shown
from l2c.io.tensors import check_nested, leaves_of, not_finite

RUN = "l2c_run"  # the key of a run's settings in a checkpoint
VERSION = 2
VERSIONS = (1, VERSION)  # of 1 there is no digest
SHARED = "shared_by"  # processes and parts, among them
MARK = b"l2c sha256 "
LIGHTNING = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "epoch")


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their final place and renamed, on any file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            ValueError: if a trained weight is not finite; the file stays as it was.
            OSError: if the folder cannot be written or its disk is full; the file stays as it was.

        """
        wrong = not_finite({k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, Tensor)})
        if wrong:
            raise ValueError(
                f"{wrong[0]} is not finite after step {checkpoint['global_step']}, so that no checkpoint of it is "
                f"written; {Path(path).parent} keeps the last good one; lower the learning rate"
            )
        buffer = io.BytesIO()  # torch's own errors of writing say neither what nor where
        torch.save(checkpoint, buffer)
        with replacing(path) as temporary:
            temporary.write_bytes(_marked(buffer.getvalue()))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running a pickle's code."""
        return torch.load(path, map_location="cpu", weights_only=True)


class RunIdentity(pl.Callback):
    """Write the settings of a run into its checkpoints, and how its batches are shared; say where that changes.

    Args:
        settings: plain values by full name; those that a resumed run must share.

    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = plain(settings)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Add them."""
        checkpoint[RUN] = {"version": VERSION, "settings": self.settings, SHARED: _shared(trainer)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Say that sums are taken in another order from here on, if another number of processes or parts goes on."""
        there, here = checkpoint[RUN].get(SHARED, ""), _shared(trainer)
        if trainer.is_global_zero and there != here and isinstance(there, str) and there:
            sys.stderr.write(
                f"each batch was shared by {shown(there)} so far, by {here} from here on: of the same images, sums "
                "are taken in another order, so that results may differ in their last digits\n"
            )


def _shared(trainer: pl.Trainer) -> str:
    """Return how a batch is shared, `2 processes in 1 part each`."""
    processes, parts = counted(trainer.world_size, "process"), counted(trainer.accumulate_grad_batches, "part")
    return f"{processes} in {parts} each"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with lists for tuples, as they come back from a file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint to resume from, without running a pickle's code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is no checkpoint of a training of this package.

    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint to resume from at {path}; give the last.ckpt of a run")
    try:
        marked = _check_mark(Path(path).read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles; what matters is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own exception
        raise ValueError(f"cannot resume from {path}: {reason_of(error)}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"cannot resume from {path}: it is no checkpoint; give the last.ckpt of a run")
    check_nested(f"cannot resume from {path}: its", content)
    run = content.get(RUN)
    version = run.get("version") if isinstance(run, dict) else None
    missing = [key for key in LIGHTNING if key not in content]
    complete = (
        not missing
        and isinstance(content["state_dict"], dict)
        and all(isinstance(name, str) for name in content["state_dict"])
        and all(isinstance(content[key], list) for key in ("optimizer_states", "lr_schedulers"))
        and isinstance(content["loops"], dict)
        and type(content["global_step"]) is int
        and content["global_step"] >= 0
    )
    if not complete:
        what = f"it has no {missing[0]}" if missing else "a part of it has another type"
        raise ValueError(f"cannot resume from {path}: {what}; give the last.ckpt that a training wrote")
    if type(version) is int and version == VERSION and not marked:
        raise ValueError(f"cannot resume from {path}: it is cut short or damaged; give an earlier checkpoint")
    settings = run.get("settings") if run and type(version) is int and version in VERSIONS else None
    if not isinstance(settings, dict) or any(isinstance(leaf, Tensor) for _, leaf in leaves_of(settings)):
        raise ValueError(
            f"cannot resume from {path}: it does not say which settings made it (another version of this package "
            "wrote it); start anew without resume"
        )
    return content


def _marked(content: bytes) -> bytes:
    """Return a checkpoint's bytes with their digest, as the comment at the end of the archive that they are."""
    mark = MARK + hashlib.sha256(content[:-2]).hexdigest().encode()
    return content[:-2] + len(mark).to_bytes(2, "little") + mark


def mark_of(path: Path, *, check: bool = False) -> str | None:
    """Return the digest that a checkpoint says to have; None for a file that is none of ours.

    Args:
        path: a file.
        check: whether to read all of it; None then also if it has another digest.

    """
    size = len(MARK) + 64
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        end = file.read(size)
    if not end.startswith(MARK):
        return None
    try:
        return end[len(MARK) :].decode("ascii") if not check or _check_mark(path.read_bytes()) else None
    except ValueError:
        return None


def _check_mark(content: bytes) -> bool:
    """Return whether a checkpoint has a digest; refuse another one than its bytes have.

    Torch itself does not look at checksums, and takes damaged numbers as they are.

    Raises:
        ValueError: if the digest differs.

    """
    size = len(MARK) + 64
    body, mark = content[: -size - 2], content[-size:]
    if not mark.startswith(MARK):
        return False
    if mark[len(MARK) :] != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its digest differs")
    return True


def check_checkpoint(
    path: str | Path,
    prefix: str,
    expected: Mapping[str, Tensor],
    *,
    settings: Mapping[str, Any],
    max_steps: int,
    word: str = "trainer.max_steps",
) -> None:
    """Refuse a checkpoint to resume from that is damaged or belongs to another run.

    Args:
        path: the checkpoint.
        prefix: prefix of the names of the trained weights in it.
        expected: names after the prefix and tensors of this run's trained weights.
        settings: settings of this run, see `RunIdentity`.
        max_steps: steps that this run is to make in all.
        word: the name of that setting.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, its settings, weights or optimiser states are others, or it is further
            than `max_steps`; the message names the first few differences.

    """
    content = read_checkpoint(path)
    _check_settings(path, content[RUN]["settings"], plain(settings))
    state = content["state_dict"]
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    wrong = sorted(
        set(found.keys() ^ expected.keys())
        | {
            name
            for name in found.keys() & expected.keys()
            if not isinstance(found[name], Tensor)
            or (found[name].shape, found[name].layout) != (expected[name].shape, expected[name].layout)
        }
    )
    if wrong:
        raise ValueError(
            f"{path} belongs to another run: {len(wrong)} weights are missing, unexpected or of another shape "
            f"({', '.join(map(shown, wrong[:3]))}); resume with the settings it was made with, or start "
            "anew without resume"
        )
    broken = not_finite(found)
    if broken:
        raise ValueError(f"cannot resume from {path}: {shown(broken[0])} is not finite; give an earlier checkpoint")
    _check_optimisers(path, content["optimizer_states"], {tuple(value.shape) for value in expected.values()})
    if content["global_step"] > max_steps:
        raise ValueError(
            f"{path} has {content['global_step']} steps behind it, more than {word}={max_steps}; raise {word}"
        )


def _check_settings(path: str | Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse settings that differ, and say which."""
    if differing := differences(there, here):
        raise ValueError(
            f"{path} belongs to another run: {differing}; resume with its settings, or start "
            "anew in another folder without resume"
        )


def _check_optimisers(path: str | Path, states: list[Any], shapes: set[tuple[int, ...]]) -> None:
    """Refuse a checkpoint whose optimiser is missing or is that of other weights."""
    reason = None
    if len(states) != 1 or not isinstance(states[0], dict) or not {"state", "param_groups"} <= states[0].keys():
        reason = "it holds no states of the optimiser"
    elif not isinstance(states[0]["state"], dict) or not isinstance(states[0]["param_groups"], list):
        reason = "the states of its optimiser are damaged"
    else:
        tensors = [
            value
            for entry in states[0]["state"].values()
            for value in (entry.values() if isinstance(entry, dict) else ())
            if isinstance(value, Tensor) and value.ndim
        ]
        if any(tuple(value.shape) not in shapes for value in tensors):
            reason = "the states of its optimiser are those of other weights"
    if reason:
        raise ValueError(f"cannot resume from {path}: {reason}; give the last.ckpt that a training wrote")
