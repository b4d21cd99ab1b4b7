"""Where a backbone comes from: a preset of ours, or a diffusers pipeline (`backend=diffusers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone


def is_pipeline(model: Mapping[str, Any] | None) -> bool:
    """Whether a config's `model` group is that of `backend=diffusers`."""
    return model is not None and "pipeline" in model


def pipeline_options(model: Mapping[str, Any]) -> str:
    """Return what an entry must be told to load the same backbone, where it is a pipeline's."""
    if not is_pipeline(model):
        return ""
    prompts = f"prompts={model['prompts']} " if model["prompts"] else ""
    return f"backend=diffusers pipeline={model['pipeline']} {prompts}"


def configured_backbone(
    model: Mapping[str, Any], solver: Mapping[str, Any], *, fewer_steps: bool = False
) -> Backbone:
    """Return the backbone that a config's `model` and `solver` groups name; see `load_backbone`, `load_pipeline`."""
    if not is_pipeline(model):
        return load_backbone(model)
    from l2c.integrations.diffusers.pipeline_backbone import load_pipeline  # diffusers is optional

    return load_pipeline(
        model, num_evaluations=solver["num_evaluations"], guidance_scale=solver["cfg_scale"], fewer_steps=fewer_steps
    )
