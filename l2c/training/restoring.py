"""What a training is restored from: a checkpoint with the parts that this training would write, or a refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from l2c.io.memory import out_of_memory
from l2c.io.names import shown
from l2c.io.tensors import is_plain, leaves_of, not_finite
from l2c.training.checkpoints import read_checkpoint
from l2c.training.watch import watched

GIVE = "give the last.ckpt that a training wrote"
BAD_INPUT = (ValueError, OSError, MemoryError)
BATCHES = "epoch_loop.batch_progress"  # of a checkpoint's loops
SCHEDULE = ("base_lrs", "last_epoch", "_step_count", "_last_lr", "lr_lambdas")  # what no schedule does without
# Of an optimiser, what no version does without.
SETTINGS = ("lr", "betas", "eps", "weight_decay", "momentum", "params", "muon")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of a weight; Muon keeps its momentum


class _Restoring(pl.Callback):
    """Lets the loops stand at the checkpoint's step, and notes when all is restored and the training begins."""

    done = False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Count the batches behind a step anew: a step may have another number of accumulated parts here."""
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in map(checkpoint["loops"]["fit_loop"][BATCHES].get, ("total", "current")):
            more = batches - counts["ready"]
            counts.update({name: counts[name] + more for name in counts})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note it."""
        self.done = True


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None
) -> None:
    """Train, from a checkpoint that `check_restorable` has seen or from the start.

    Raises:
        ValueError: if the training cannot be restored, or ends before its last step.
        SystemExit: if Ctrl-C, SIGTERM or SIGHUP comes; the code is 130, 143 or 129.

    """
    restoring = _Restoring()
    trainer.callbacks.append(restoring)  # type: ignore[attr-defined]
    try:
        with watched(trainer):
            trainer.fit(module, data, ckpt_path=checkpoint)
    except Exception as error:
        if checkpoint is None or restoring.done or isinstance(error, BAD_INPUT) or out_of_memory(error):
            raise
        _refuse(checkpoint, f"its parts do not fit this training ({shown(error, 200)})")
    if trainer.global_step < trainer.max_steps:
        mend = "start anew without resume" if checkpoint else "start it again"
        raise ValueError(f"the training ended after {trainer.global_step} of {trainer.max_steps} steps; {mend}")


def _refuse(path: str | Path, why: str) -> NoReturn:
    raise ValueError(f"cannot resume from {path}: {why}; {GIVE}")


def check_restorable(path: str | Path | None, module: pl.LightningModule, trainer: pl.Trainer) -> None:
    """Refuse a checkpoint that would not restore a training whole, before anything is done.

    Its parts must have the names, types and shapes that this training's own checkpoint would have, its values must
    be finite, and its counters must agree on the step.

    Args:
        path: a checkpoint that `check_checkpoint` has taken; None = the training begins anew.
        module: the training's module, as it is before the first step.
        trainer: the training's Trainer.

    Raises:
        ValueError: if a part is missing, of another type or shape, or out of range; the message names it.

    """
    if path is None:
        return
    content = read_checkpoint(path)
    trainer.precision_plugin.convert_module(module)  # in place, to the type of bf16-true, as fit does
    for name, wanted in _parts(module, trainer).items():
        if name not in content:
            _refuse(path, f"it has no {name}")
        _check_form(path, name, content[name], wanted)
        values = {".".join(map(str, (name, *place))): value for place, value in leaves_of(content[name])}
        if broken := not_finite(values):
            _refuse(path, f"{shown(broken[0])} is not finite")
    if _version(path, content) == pl.__version__:  # another version's have other fields
        loops = {name: getattr(trainer, name).state_dict() for name in content["loops"] if hasattr(trainer, name)}
        _check_form(path, "loops", content["loops"], loops)
    _check_counters(path, content)
    _check_callbacks(path, content.get("callbacks"), trainer)
    _check_optimiser(path, content, module, may_skip=trainer.precision == "16-mixed")


def _version(path: str | Path, content: Mapping[str, Any]) -> str:
    """Return the version of Lightning that wrote a checkpoint."""
    version = content.get("pytorch-lightning_version")
    if not isinstance(version, str) or not re.fullmatch(r"\d+(\.\d+){1,3}(\.?(a|b|rc|dev|post)\d+)?", version):
        _refuse(path, "it does not say which version of Lightning wrote it")
    return version


def _parts(module: pl.LightningModule, trainer: pl.Trainer) -> dict[str, Any]:
    """Return the parts of this training's own checkpoint that are made of its weights."""
    parts: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(parts)
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        parts["current_model_state"] = parts["state_dict"]
        parts["averaging_state"] = {"n_averaged": torch.tensor(0)}
    return parts


def _check_form(path: str | Path, name: str, found: Any, wanted: Any) -> None:
    """Refuse a value of another type, shape or set of names than this training has."""
    if isinstance(wanted, Tensor):
        alike = isinstance(found, Tensor) and is_plain(found) == is_plain(wanted)
        if not alike or (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            _refuse(path, f"{shown(name)} is {_kind(found)}, not {_kind(wanted)}")
    elif isinstance(wanted, Mapping):
        if not isinstance(found, Mapping) or found.keys() != wanted.keys():
            odd = sorted(map(str, found.keys() ^ wanted.keys())) if isinstance(found, Mapping) else [_kind(found)]
            _refuse(path, f"{shown(name)} has other names than here ({shown(', '.join(odd))})")
        for key, value in wanted.items():
            _check_form(path, f"{name}.{key}", found[key], value)
    elif isinstance(wanted, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(wanted):
            _refuse(path, f"{shown(name)} has another length than here")
        for i, value in enumerate(wanted):
            _check_form(path, f"{name}.{i}", found[i], value)
    elif type(found) is not type(wanted):
        _refuse(path, f"{shown(name)} is {_kind(found)}, not {_kind(wanted)}")
    elif isinstance(found, (int, float)) and not abs(found) < 1e30:
        _refuse(path, f"{shown(name)} is {shown(found)}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"of the type {type(value).__name__}"


def _check_counters(path: str | Path, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose loops stand at another step than it says."""
    step, loop = content["global_step"], content["loops"].get("fit_loop", {})
    try:
        optimiser = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        steps, batches = optimiser["total"]["completed"], [loop[BATCHES][name] for name in ("total", "current")]
        counts = [count for each in batches for count in each.values()]
        behind = {each["ready"] - count for each in batches for count in each.values()}
    except (KeyError, TypeError, AttributeError):
        _refuse(path, "its loops are not those of a training")
    if steps != step or any(type(count) is not int or count < 0 for count in counts) or not behind <= {0, 1}:
        _refuse(path, f"its loops stand at another step than {step}")


def _check_callbacks(path: str | Path, states: Any, trainer: pl.Trainer) -> None:
    """Refuse states of callbacks that have another form; a checkpoint's file may be removed, so it must be one."""
    if not isinstance(states, Mapping):
        _refuse(path, "the states of its callbacks are damaged")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        found = states.get(callback.state_key)
        if found is None:
            continue
        _check_form(path, type(callback).__name__, found, callback.state_dict())
        if isinstance(callback, ModelCheckpoint):
            files = [value for place, value in leaves_of(found, str) if str(place[-1]).endswith("model_path")]
            if odd := [file for file in files if not re.fullmatch(r"|/(.*/)?[^/]+\.ckpt", file, re.DOTALL)]:
                _refuse(path, f"it names {shown(odd[0], 200)} as a checkpoint")


def _check_optimiser(
    path: str | Path, content: Mapping[str, Any], module: pl.LightningModule, *, may_skip: bool
) -> None:
    """Refuse states of the optimiser and of its schedule that are not of this training at this step.

    Where the optimiser may skip steps, whose gradients overflow in 16 bits, states may be missing.
    """
    made: Any = module.configure_optimizers()
    optimiser, scheduler, step = made, None, content["global_step"]
    if isinstance(made, Mapping):
        optimiser, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    schedules = content["lr_schedulers"]
    rates = [group["lr"] for group in optimiser.param_groups]
    if len(schedules) != (scheduler is not None) or not all(isinstance(one, Mapping) for one in schedules):
        _refuse(path, f"it holds {len(schedules)} schedules of the learning rate")
    if scheduler is not None:
        _check_schedule(path, schedules[0], scheduler, step)
        rates = schedules[0]["_last_lr"]  # a run that goes on beyond its end begins with the last one
    here, states = optimiser.state_dict()["param_groups"], content["optimizer_states"][0]
    if len(states["param_groups"]) != len(here):
        _refuse(path, f"its optimiser has {len(states['param_groups'])} groups of weights, not {len(here)}")
    for found, wanted, rate in zip(states["param_groups"], here, rates, strict=True):
        _check_group(path, found, {**wanted, "lr": rate})
    weights = [
        (weight, frozenset({"momentum"} if group.get("muon") else MOMENTS))
        for group in optimiser.param_groups
        for weight in group["params"]
    ]
    for number, state in states["state"].items():
        if type(number) is not int or not 0 <= number < len(weights) or not isinstance(state, Mapping):
            _refuse(path, f"its optimiser holds a state of {shown(number)}, which is none of its weights")
        _check_moments(path, number, state, *weights[number], step)
    if may_skip:
        return
    idle = {id(weight) for weight in getattr(module, "idle", ())}
    missing = [number for number in range(len(weights)) if number not in states["state"]]
    if step and (gone := [number for number in missing if id(weights[number][0]) not in idle]):
        _refuse(path, f"its optimiser holds no state of weight {gone[0]}")
    if missing and sum(float(state["step"]) for state in states["state"].values()) < step:
        _refuse(path, f"its optimiser holds the states of fewer steps than {step}")


def _check_schedule(path: str | Path, there: Mapping[str, Any], scheduler: LRScheduler, step: int) -> None:
    """Refuse a schedule of the learning rate that is not this training's at this step."""
    own = {name: v for name, v in scheduler.state_dict().items() if name in there or name in SCHEDULE}
    known = {name: value for name, value in there.items() if name in scheduler.state_dict()}  # torch's names change
    _check_form(path, "the schedule of the learning rate", known, own)
    right = (there["last_epoch"], there["_step_count"], there["base_lrs"]) == (step, step + 1, own["base_lrs"])
    rates = zip(there["_last_lr"], own["base_lrs"], strict=True)
    if not right or not all(0 <= rate <= 1.000001 * base for rate, base in rates):
        _refuse(path, f"its schedule of the learning rate is not this training's at step {step}")


def _check_group(path: str | Path, found: Any, wanted: Mapping[str, Any]) -> None:
    """Refuse settings of an optimiser that are not this training's; flags of another torch may be missing."""
    if not isinstance(found, Mapping):
        _refuse(path, "the groups of its optimiser are damaged")
    for name, value in wanted.items():
        there = found.get(name)
        same = name == "lr" and isinstance(there, (int, float)) and math.isclose(there, value, rel_tol=1e-9)
        off = name not in found and name not in SETTINGS
        if any(leaves_of(there)) or not (same or off or there == value):
            _refuse(path, f"{name} of its optimiser is {shown(there)}, not {shown(value)}")


def _check_moments(
    path: str | Path, number: int, state: Mapping[str, Any], weight: Tensor, names: frozenset[str], step: int
) -> None:
    """Refuse the averages of a weight's gradients that no training has at this step."""
    if state.keys() != names:
        _refuse(path, f"its optimiser's state of weight {number} has other names than {', '.join(sorted(names))}")
    for name, value in state.items():
        wanted = torch.tensor(0.0) if name == "step" else weight
        _check_form(path, f"{name} of weight {number}", value, wanted.detach())
        wrong = not_finite({name: value}) or (name != "momentum" and name != "exp_avg" and bool((value < 0).any()))
        if wrong or (name == "step" and not 1 <= float(value) <= step):
            _refuse(path, f"{name} of weight {number} is out of range")
