"""Where a backbone comes from: a preset of ours, or a diffusers pipeline (`backend=diffusers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.backbones.backbone import Backbone
from l2c.backbones.zoo import load_backbone


def configured_backbone(model: Mapping[str, Any], solver: Mapping[str, Any]) -> Backbone:
    """Return the backbone that a config's `model` and `solver` groups name; see `load_backbone`, `load_pipeline`."""
    if "pipeline" not in model:
        return load_backbone(model)
    from l2c.integrations.pipeline_backbone import load_pipeline  # diffusers is optional

    return load_pipeline(model, num_evaluations=solver["num_evaluations"], guidance_scale=solver["cfg_scale"])
