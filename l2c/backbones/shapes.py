"""The network of a preset without weights, for code that needs only names and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import ModelPreset, build_backbone
from l2c.backbones.whole_output import under_layers


class _WithoutStorage(TorchFunctionMode):
    """Weights are allocated on the meta device and not drawn; what else a network computes is, on the CPU.

    On the meta device torch would load its compiler for the latter.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return given["tensor"] if "tensor" in given else args[0]
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def backbone_shapes(model: str | Mapping[str, Any] | ModelPreset) -> Backbone:
    """Return a frozen backbone on the meta device, which holds no memory and computes nothing.

    Args:
        model: the name of a preset in `configs/model`, or such a preset as a mapping.

    Raises:
        ValueError: if the name is unknown, or the preset's arguments do not fit.

    """
    preset = ModelPreset.of(model)
    with _WithoutStorage():
        backbone = build_backbone(preset).to("meta")
    return under_layers(backbone.eval().requires_grad_(False), preset.layers or ())
