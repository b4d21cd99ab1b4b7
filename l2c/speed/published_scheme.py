"""The published way to sample with a router, for comparison, written from its description.

It computes the modulation of every block at every evaluation, keeps the output of every layer that it computes until
the next one replaces it, and looks up for every layer whether it is among those to be computed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone
from l2c.backbones.dit import DiT, DiTBlock, unpatchify
from l2c.backbones.uvit import UViT, UViTBlock, UViTOutBlock
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph


class PublishedScheme:
    """Answer a solver's evaluations as the published code does, in eager mode.

    Args:
        backbone: a DiT or U-ViT.
        y: (N,) conditional labels; None for a backbone without labels.
        guidance: merged from one batch of 2 N.
        graph: None computes everything (and keeps everything).

    Raises:
        ValueError: if the backbone is of another kind, or the graph reuses its whole output.

    """

    def __init__(self, backbone: Backbone, y: Tensor | None, guidance: Guidance, graph: CacheGraph | None) -> None:
        if not isinstance(backbone, (DiT, UViT)):
            raise ValueError(
                f"the published scheme reuses layers of DiT and UViT, got {type(backbone).__name__}; leave "
                "baseline out"
            )
        self.backbone = backbone
        self.guidance = guidance
        self.y = guidance.labels(y, backbone.conventions.null_label)
        rows = graph.rows if graph is not None else None
        self._computed = None if rows is None else [[i for i, bit in enumerate(row) if bit] for row in rows]
        self._cache: dict[int, Tensor] = {}
        self._evaluation = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the output (N, C or 2 C, H, W), in 32 bits, for the state x (N, C, H, W) at timestep t."""
        batch = self.guidance.inputs(x).to(self.backbone.dtype)
        times = torch.full((len(batch),), t, device=x.device)
        net = self.backbone
        output = (self._dit(net, batch, times) if isinstance(net, DiT) else self._uvit(net, batch, times)).float()
        self._evaluation += 1
        return self.guidance.merge(output)

    @property
    def cached_bytes(self) -> int:
        """Memory that the cache holds now, in bytes."""
        return sum(output.nbytes for output in self._cache.values())

    def _computes(self, layer: int) -> bool:
        return self._computed is None or layer in self._computed[self._evaluation]

    def _dit(self, net: DiT, x: Tensor, t: Tensor) -> Tensor:
        c = net.t_embedder(t) + net.y_embedder(self.y)
        h = net.x_embedder(x) + net.pos_embed
        for b, block in enumerate(net.blocks):
            assert isinstance(block, DiTBlock)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)
            if self._computes(2 * b):
                self._cache[2 * b] = block.attn(_modulated(block.norm1(h), shift_a, scale_a))
            h = h + gate_a.unsqueeze(1) * self._cache[2 * b]
            if self._computes(2 * b + 1):
                hidden = block.mlp.fc1(_modulated(block.norm2(h), shift_m, scale_m))
                self._cache[2 * b + 1] = block.mlp.fc2(nn.functional.gelu(hidden, approximate="tanh"))
            h = h + gate_m.unsqueeze(1) * self._cache[2 * b + 1]
        shift, scale = net.final_layer.adaLN_modulation(c).chunk(2, dim=1)
        h = net.final_layer.linear(_modulated(net.final_layer.norm_final(h), shift, scale))
        return unpatchify(h, net.patch_size, net.out_channels)

    def _uvit(self, net: UViT, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([*net.condition(t, self.y), net.patch_embed(x)], dim=1) + net.pos_embed
        skips: list[Tensor] = []
        for b, block in enumerate(net.blocks):
            assert isinstance(block, UViTBlock)
            if isinstance(block, UViTOutBlock):
                h = block.skip_linear(torch.cat([h, skips.pop()], dim=-1))
            if self._computes(2 * b):
                self._cache[2 * b] = block.attn(block.norm1(h))
            h = h + self._cache[2 * b]
            if self._computes(2 * b + 1):
                self._cache[2 * b + 1] = block.mlp(block.norm2(h))
            h = h + self._cache[2 * b + 1]
            if b < len(net.in_blocks):
                skips.append(h)
        h = net.decoder_pred(net.norm(h))[:, net.num_extra_tokens :]
        return net.final_layer(unpatchify(h, net.patch_size, net.in_chans))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
