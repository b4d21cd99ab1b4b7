"""A backbone, a graph and guidance as one callable for a solver; owns the cache of one trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.diffusion import Guidance
from l2c.graph import CacheGraph
from l2c.sampling.history import LayerHistory


class Denoiser:
    """Answer a solver's evaluations in order, reusing what the graph says; make a new one per trajectory.

    Args:
        backbone: the frozen network.
        y: (N,) conditional labels on the backbone's device; None for a backbone without labels.
        guidance: how conditional and unconditional outputs are merged; both run as one batch of 2 N.
        graph: what to reuse at which evaluation; None computes everything and keeps nothing.

    """

    def __init__(
        self, backbone: Backbone, y: Tensor | None, guidance: Guidance, graph: CacheGraph | None = None
    ) -> None:
        self.backbone = backbone
        self.guidance = guidance
        self.dtype = next(backbone.parameters()).dtype
        self._history = None if graph is None else LayerHistory(graph)
        self._evaluation = 0
        if guidance.active:
            assert y is not None, "the sampler refuses guidance for a backbone without a null label"
            y = torch.cat([y, torch.full_like(y, backbone.conventions.null_label or 0)])  # (2 N,)
        self.y = y

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the output (N, C or 2 C, H, W), in 32 bits, for the state x (N, C, H, W) at timestep t."""
        batch = torch.cat([x, x]) if self.guidance.active else x
        times = torch.full((batch.shape[0],), t, device=x.device)
        output = self._forward(batch.to(self.dtype), times).float()
        self._evaluation += 1
        return self.guidance.combine(*output.chunk(2)) if self.guidance.active else output

    def _forward(self, x: Tensor, times: Tensor) -> Tensor:
        if self._history is None:
            return self.backbone(x, times, self.y)
        e, history = self._evaluation, self._history
        output, computed = self.backbone.forward_cached(
            x, times, self.y, history.graph.rows[e], history.cached(e), history.keep(e)
        )
        history.update(e, computed)
        return output

    @property
    def cached_bytes(self) -> int:
        """Memory that the cache holds now, in bytes."""
        return 0 if self._history is None else self._history.nbytes
