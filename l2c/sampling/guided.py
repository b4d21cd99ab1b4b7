"""A backbone under guidance: its inputs for a solver's state, and its guided output."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.diffusion import Guidance


class GuidedBackbone:
    """The inputs and outputs of a backbone for the labels of one batch.

    Args:
        backbone: the network.
        y: (N,) conditional labels; None for a backbone without labels.
        guidance: active guidance doubles the batch, see `Guidance`.

    Attributes:
        y: (N,) labels, or (2 N,) with those of the unconditional branch; None for a backbone without labels.

    """

    def __init__(self, backbone: Backbone, y: Tensor | None, guidance: Guidance) -> None:
        self.backbone = backbone
        self.guidance = guidance
        self.y = guidance.labels(y, backbone.conventions.null_label)
        self.dtype = backbone.dtype

    def batch(self, x: Tensor) -> Tensor:
        """Return the inputs (N or 2 N, C, H, W) for the states x (N, C, H, W), in the weights' dtype."""
        return self.guidance.inputs(x).to(self.dtype)

    def inputs(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return the inputs (N or 2 N, C, H, W) and their timesteps (N or 2 N,) for the states x at t."""
        batch = self.batch(x)
        return batch, torch.full((len(batch),), t, device=batch.device)

    def full(self, x: Tensor, t: float) -> tuple[Tensor, list[Tensor]]:
        """Return the guided output for the states x at t, and the outputs of all layers, everything computed."""
        everything = (True,) * self.backbone.num_layers
        output, layers = self.backbone.forward_cached(*self.inputs(x, t), self.y, everything)
        return self.merge(output, t), [layer for layer in layers if layer is not None]

    def merge(self, output: Tensor, t: float) -> Tensor:
        """Return the guided output (N, C or 2 C, H, W), in 32 bits, of the backbone's output at t."""
        own = self.backbone.scale_at
        return self.guidance.merge(output.float(), None if own is None else own(t))
