"""The network of a preset without weights, for code that needs only names and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import ModelPreset, build_backbone
from l2c.backbones.whole_output import under_layers


def backbone_shapes(model: str | Mapping[str, Any] | ModelPreset) -> Backbone:
    """Return a frozen backbone on the meta device, which holds no memory and computes nothing.

    Args:
        model: the name of a preset in `configs/model`, or such a preset as a mapping.

    Raises:
        ValueError: if the name is unknown, or the preset's arguments do not fit.

    """
    preset = ModelPreset.of(model)
    with torch.device("meta"):
        backbone = build_backbone(preset)
    return under_layers(backbone.eval().requires_grad_(False), preset.layers or ())
