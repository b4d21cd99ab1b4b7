"""Names to backbones: presets, strict weight loading, fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from l2c.backbones.backbone import Backbone, PublishedSampling, fingerprint
from l2c.backbones.dit import DiT
from l2c.backbones.uvit import UViT
from l2c.backbones.weights import find_checkpoint, load_strict, load_weights
from l2c.io.bundled import project_folder
from l2c.io.names import near_names

BACKBONES: dict[str, type[Backbone]] = {"dit": DiT, "uvit": UViT}
RANDOM = "random"


def model_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in (project_folder("configs") / "model").glob("*.yaml"))


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
    if preset.get("sampling"):
        backbone.conventions = replace(backbone.conventions, published=PublishedSampling(**preset["sampling"]))
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
