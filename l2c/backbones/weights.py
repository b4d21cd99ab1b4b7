"""Files of weights: found, read without running a pickle's code, loaded strictly."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from l2c.io.bundled import project_folder


def find_checkpoint(checkpoint: str, *, name: str, url: str | None = None) -> Path:
    """Return the path of a weights file: as given, or in the folder of checkpoints.

    Args:
        checkpoint: a path, or the name of a file in `checkpoints/` or in the folder that the environment
            variable `L2C_CHECKPOINTS` names.
        name: the model's name, for the message.
        url: where the official file is published.

    Raises:
        FileNotFoundError: the file is in none of those places; the message says what to do.

    """
    folders = [Path(os.environ["L2C_CHECKPOINTS"])] if "L2C_CHECKPOINTS" in os.environ else []
    places = [
        Path(checkpoint).expanduser(),
        *(d / checkpoint for d in [*folders, project_folder("checkpoints")]),
    ]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place.absolute()) for place in dict.fromkeys(places))
    published = f"the official file is published at {url}" if url else "no official file is published for it"
    raise FileNotFoundError(
        f"the weights of {name} are missing: no file {checkpoint!r}, looked at {looked}; {published}; "
        "point to another file with model.checkpoint=PATH (evaluate.py, sample.py and Python: checkpoint=PATH) or to "
        "another folder with "
        "the environment variable L2C_CHECKPOINTS, or take model.checkpoint=random for benchmarks"
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a `.pt`/`.pth` file without running a pickle's code.

    Files that hold several copies (`ema`, `model`, ...) give the exponential moving average.

    Raises:
        ValueError: the file is damaged, or holds no state dict.

    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DiT's training files hold their arguments
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions for a damaged file
        raise ValueError(f"cannot read weights from {path}: {reason_of(error)}") from error
    for key in ("ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict of tensors; give the file that the training code saved")
    return dict(content)


def reason_of(error: Exception) -> str:
    """Say in one clause why a file of tensors could not be read, and what it must be."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is damaged, or holds Python objects beside tensors; give the whole file, saved as a plain state dict"
        )
    return f"it is damaged or of another format ({type(error).__name__}); give the whole file, .safetensors or .pt"


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], source: str, *, name: str | None = None) -> None:
    """Load weights into a module, `name` in messages; every key must be there and fit.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; the message names the first few.

    """
    expected = module.state_dict()
    shapes = [k for k in expected if k in weights and expected[k].shape != weights[k].shape]
    problems = []
    for what, keys in (
        ("missing", [k for k in expected if k not in weights]),
        ("unexpected", [k for k in weights if k not in expected]),
        (
            "of another shape",
            [f"{k} {tuple(weights[k].shape)} for {tuple(expected[k].shape)}" for k in shapes],
        ),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{len(keys)} {what} ({', '.join(keys[:3])}{more})")
    if problems:
        raise ValueError(
            f"{source} does not fit {name or type(module).__name__}: keys {'; '.join(problems)}; "
            "take the weights of this architecture, or the preset that these weights belong to"
        )
    module.load_state_dict(dict(weights), strict=True)
