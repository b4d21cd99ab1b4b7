"""Names to backbones: presets, strict weight loading, fingerprints."""

from __future__ import annotations

import argparse
import difflib
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone, fingerprint
from l2c.backbones.dit import DiT
from l2c.backbones.uvit import UViT

BACKBONES: dict[str, type[Backbone]] = {"dit": DiT, "uvit": UViT}
RANDOM = "random"


def project_folder(name: str) -> Path:
    """Return `configs` or `checkpoints`: beside this package in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def model_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in (project_folder("configs") / "model").glob("*.yaml"))


def near_names(name: str, known: list[str]) -> str:
    """Say which known names are near to an unknown one."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def model_preset(name: str) -> DictConfig:
    """Return the preset `configs/model/<name>.yaml`.

    Raises:
        ValueError: there is no such preset; the message names the near ones.

    """
    path = project_folder("configs") / "model" / f"{name}.yaml"
    if name not in model_names():
        raise ValueError(f"unknown model {name!r}; {near_names(name, model_names())}")
    preset = OmegaConf.load(path)
    assert isinstance(preset, DictConfig)
    return preset


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


def build_backbone(preset: Mapping[str, Any]) -> Backbone:
    """Build the network of a preset with fresh weights, in train mode.

    Raises:
        ValueError: an argument is not one of the network's.

    """
    if preset["backbone"] not in BACKBONES:
        raise ValueError(f"unknown backbone {preset['backbone']!r}; known are {', '.join(BACKBONES)}")
    try:
        backbone = BACKBONES[preset["backbone"]](**preset["args"])
    except TypeError as error:
        raise ValueError(f"the arguments of model {preset['name']} do not fit: {error}") from error
    keys = ("name", "schedule", "first_timestep", "null_label", "prediction")
    backbone.conventions = replace(backbone.conventions, **{key: preset[key] for key in keys if key in preset})
    return backbone


def load_backbone(model: str | Mapping[str, Any], *, checkpoint: str | Path | None = None) -> Backbone:
    """Return a frozen backbone in eval mode, with its weights.

    Args:
        model: the name of a preset in `configs/model`, or such a preset as a mapping.
        checkpoint: weights to take instead of the preset's: a path, or `random` for benchmarks.

    Raises:
        ValueError: unknown name, damaged file, or keys that do not fit.
        FileNotFoundError: the weights are not at hand; the message says where they are published.

    """
    preset = model_preset(model) if isinstance(model, str) else model
    wanted = str(checkpoint) if checkpoint is not None else str(preset["checkpoint"])
    path = None if wanted == RANDOM else find_checkpoint(wanted, name=preset["name"], url=preset.get("url"))
    backbone = build_backbone(preset)
    if path is not None:
        load_strict(backbone, load_weights(path), str(path), name=backbone.conventions.name)
        fingerprint(backbone)  # with the weights at hand, so that samplers need not wait for it
    return backbone.eval().requires_grad_(False)


__all__ = [
    "BACKBONES",
    "RANDOM",
    "build_backbone",
    "find_checkpoint",
    "fingerprint",
    "load_backbone",
    "load_strict",
    "load_weights",
    "model_names",
    "model_preset",
    "near_names",
    "project_folder",
    "reason_of",
]
