"""Source of a backbone: a preset of ours, or a diffusers pipeline (`backend=diffusers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone, model_preset

BACKBONE_SETTINGS = ("model", "backend", "pipeline", "prompts")  # name a backbone in all commands


def is_pipeline(model: Mapping[str, Any] | None) -> bool:
    """Return whether a config's `model` group is that of `backend=diffusers`."""
    return model is not None and "pipeline" in model


def other_weights(model: Mapping[str, Any]) -> str | None:
    """Return the weights that a preset was given in a config; None where they are its own."""
    checkpoint = model["checkpoint"]
    return None if is_pipeline(model) or checkpoint == model_preset(model["name"]).checkpoint else checkpoint


def configured_backbone(
    model: Mapping[str, Any], solver: Mapping[str, Any], *, fewer_steps: bool = False
) -> Backbone:
    """Return the backbone that a config's `model` and `solver` groups name; see `load_backbone`, `load_pipeline`."""
    if OmegaConf.is_config(model):
        model = cast("dict[str, Any]", OmegaConf.to_container(cast("DictConfig", model), resolve=True))
    if not is_pipeline(model):
        return load_backbone(model, remedy="model.checkpoint=PATH (model.checkpoint=random for benchmarks)")
    from l2c.commands.frame.saved_pipeline import load_pipeline  # diffusers is optional

    return load_pipeline(
        model, num_evaluations=solver["num_evaluations"], guidance_scale=solver["cfg_scale"], fewer_steps=fewer_steps
    )
