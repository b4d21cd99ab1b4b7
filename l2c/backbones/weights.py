"""Files of weights: found, read without running a pickle's code, loaded strictly."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from l2c.io.bundled import at_home, checkpoint_folders, own_checkpoint_folder
from l2c.io.json_fields import TORCH, WEIGHTS, check_form
from l2c.io.memory import out_of_memory
from l2c.io.names import shown
from l2c.io.tensors import is_plain, not_finite

log = logging.getLogger(__name__)
# Names under which training codes save a state dict; the exponential moving averages come first.
CONTAINERS = (
    *("ema", "model_ema", "ema_model", "ema_state_dict", "params_ema", "shadow"),
    *("model", "state_dict", "model_state_dict", "params", "module"),
)
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "ema_model.")  # of wrappers, before every key


def find_checkpoint(
    checkpoint: str | Path, *, name: str, url: str | None = None, remedy: str = "checkpoint=PATH"
) -> Path:
    """Return the path of a weights file: as given, or in a folder of checkpoints.

    Args:
        checkpoint: a path, or the name of a file in the folder that the environment variable `L2C_CHECKPOINTS`
            names, in `checkpoints/` below the current folder, or among the weights that come with this package.
        name: the model's name, for the message.
        url: address of the published file.
        remedy: how the caller's user names another file, for the message.

    Raises:
        FileNotFoundError: if the file is in none of those places; the message says what to do.

    """
    places = [at_home(checkpoint), *(folder / checkpoint for folder in checkpoint_folders())]
    for place in places:
        if place.is_file():
            if place is not places[0] and not own_checkpoint_folder().is_dir() and "L2C_CHECKPOINTS" in os.environ:
                log.warning(
                    "the environment variable L2C_CHECKPOINTS names a folder that is not there, %s; %s comes from %s",
                    shown(own_checkpoint_folder(), 300),
                    shown(checkpoint, 300),
                    shown(place.parent.absolute(), 300),
                )
            return place
    looked = ", ".join(shown(place, 300) for place in dict.fromkeys(place.absolute() for place in places))
    published = f"the official file is published at {url}" if url else "no official file is published for it"
    raise FileNotFoundError(
        f"the weights of {name} are missing: no file {str(checkpoint)!r}, looked at {looked}; {published}; "
        f"give another file with {remedy}, or name its folder in the environment variable L2C_CHECKPOINTS"
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a `.pt`/`.pth` file without running a pickle's code.

    A file of a training run gives the state dict inside it (see `CONTAINERS`): of several copies, the exponential
    moving average.

    Raises:
        ValueError: if the file is damaged, or holds no state dict; of one that l2c wrote it is said what it holds.

    """
    check_form(path, WEIGHTS, TORCH)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DiT's training files hold their arguments
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions for a damaged file
        raise ValueError(f"cannot read weights from {shown(path, 300)}: {reason_of(error)}") from error
    for _ in CONTAINERS:  # no deeper: a file may hold a container that holds itself
        inside = content if isinstance(content, Mapping) else {}
        content = next((inside[key] for key in CONTAINERS if isinstance(inside.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(
            f"{shown(path, 300)} holds no state dict of tensors; give the file that the training code saved"
        )
    return dict(content)


def reason_of(error: Exception) -> str:
    """Say in one clause why a file of tensors could not be read, and what it must be."""
    if out_of_memory(error):
        return "out of memory while it was read; free some, or give the whole file if it was cut short"
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is damaged, or holds Python objects beside tensors; give the whole file, saved as a plain state dict"
        )
    return f"it is damaged or of another format ({type(error).__name__}); give the whole file, .safetensors or .pt"


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], source: str, *, name: str | None = None) -> None:
    """Load weights into a module; every key must be there and fit.

    Prefixes of wrappers (see `PREFIXES`) that all keys share are taken off first.

    Args:
        module: the module.
        weights: its state dict, maybe of a wrapper around such a module.
        source: where the weights come from, for messages.
        name: what to call the module in messages; None = its class.

    Raises:
        ValueError: if keys are missing, unexpected or of another shape, or a value is not finite; the message names
            the first few.

    """
    name = name or type(module).__name__
    expected = module.state_dict()
    weights = _unwrapped(weights, expected)
    problems = _misfits(weights, expected)
    if problems:
        shared = _shared_prefix(list(weights))
        wrapped = f"; all its keys begin with {shared!r}: save the module below that name" if shared else ""
        raise ValueError(
            f"{source} does not fit {name}: keys {'; '.join(problems)}{wrapped}; "
            "take the weights of this architecture, or the preset that these weights belong to"
        )
    for key, value in weights.items():
        _check_values(source, key, value, expected[key])
    module.load_state_dict(dict(weights), strict=True)


def _check_values(source: str, key: str, value: Tensor, expected: Tensor) -> None:
    """Refuse a tensor whose values cannot be taken as they are, or are not finite in the module's own type."""
    if not is_plain(value) or value.is_floating_point() != expected.is_floating_point() or value.is_complex():
        raise ValueError(
            f"{source} holds {key} as {value.dtype}, {value.layout}, on {value.device}, which cannot be loaded into "
            f"{expected.dtype}; save the weights as plain tensors of floating-point numbers"
        )
    if not_finite({key: value.to(expected.dtype)}):
        raise ValueError(
            f"{source} holds numbers that are not finite in {key}; give the file of a run that went well"
        )


def _unwrapped(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take off the prefixes of wrappers that all keys share."""
    while weights and not any(key in expected for key in weights):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _shared_prefix(keys: Sequence[str]) -> str:
    """Return the dotted parts with which all keys begin, `model.inner.` for example; empty where they share none."""
    first, last = (key.split(".")[:-1] for key in (min(keys, default=""), max(keys, default="")))
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{part}." for part, _ in shared)


def _misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return a clause for each way in which keys and shapes differ."""
    shapes = [k for k in expected if k in weights and expected[k].shape != weights[k].shape]
    misfits = {
        "missing": [k for k in expected if k not in weights],
        "unexpected": [k for k in weights if k not in expected],
        "of another shape": [f"{k} {tuple(weights[k].shape)} for {tuple(expected[k].shape)}" for k in shapes],
    }
    clauses = []
    for what, keys in misfits.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            clauses.append(f"{len(keys)} {what} ({', '.join(map(shown, keys[:3]))}{more})")
    return clauses
