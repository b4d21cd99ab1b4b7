"""DiT (Peebles & Xie, arXiv 2212.09748) with the published state-dict keys.

N: batch, C: channels, H = W: input_size, T = (H / patch_size)^2 tokens, D: hidden_size, L: depth.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone, Conventions, sizes
from l2c.backbones.layer_cache import Fresh, Pair, Pass, mix
from l2c.backbones.modules import Attention, GELUTanh, Mlp, PatchEmbed
from l2c.io.numbers import finite_number, truth_value


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift the channels of x (N, T, D) by (N, D) each."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0, shift: int = 0) -> Tensor:
    """Embed timesteps t (N,) as (N, dim): cosines, then sines, of geometrically spaced frequencies.

    With `shift=1` the last frequency is `1 / max_period` itself, as diffusers has it.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - shift)
    angles = t[:, None].float() * torch.exp(-math.log(max_period) * exponent)[None]  # (N, dim / 2)
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return nn.functional.pad(embedding, (0, dim % 2))  # (N, dim)


def unpatchify(tokens: Tensor, patch_size: int, channels: int) -> Tensor:
    """Turn tokens (N, T, patch_size^2 * channels) of a square image into (N, channels, H, W)."""
    side = math.isqrt(tokens.shape[1])
    x = tokens.reshape(-1, side, side, patch_size, patch_size, channels)
    x = torch.einsum("nhwpqc->nchpwq", x)
    return x.reshape(-1, channels, side * patch_size, side * patch_size)


def sincos_position_embedding(dim: int, side: int) -> Tensor:
    """Return the fixed 2-D sine-cosine embedding (1, side^2, dim); the first half encodes the column."""
    omega = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega[None]  # (side, dim / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, dim / 2)
    column = axis[None].expand(side, side, -1)
    row = axis[:, None].expand(side, side, -1)
    return torch.cat([column, row], dim=-1).reshape(1, side * side, dim).float()


class TimestepEmbedder(nn.Module):
    """Embed timesteps (N,) as (N, D)."""

    digested_switches: ClassVar = {"frequency_shift": 0}  # see `l2c.backbones.digest`

    def __init__(self, hidden_size: int, frequency_size: int = 256) -> None:
        super().__init__()
        self.frequency_size = frequency_size
        self.frequency_shift = 0  # 1 in weights that come from diffusers
        self.mlp = nn.Sequential(
            nn.Linear(frequency_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (N,) as (N, D)."""
        frequencies = timestep_embedding(t, self.frequency_size, shift=self.frequency_shift)
        return self.mlp(frequencies.to(next(self.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Embed labels (N,) as (N, D); the last row of the table is the null label."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        """Embed y (N,) as (N, D)."""
        return self.embedding_table(y)


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), act_layer=GELUTanh)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(
        self, x: Tensor, modulation: Tensor, fresh: tuple[Fresh, Fresh] = (True, True), cached: Pair = (None, None)
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return x (N, T, D) after both layers, and both layers' outputs before their gates.

        The modulation (N, 6 D) is `adaLN_modulation` of the conditioning.
        """
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        attn = mix(fresh[0], lambda: self.attn(modulate(self.norm1(x), shift_msa, scale_msa)), cached[0])
        h = torch.addcmul(x, gate_msa.unsqueeze(1), attn)  # (N, T, D)
        mlp = mix(fresh[1], lambda: self.mlp(modulate(self.norm2(h), shift_mlp, scale_mlp)), cached[1])
        return torch.addcmul(h, gate_mlp.unsqueeze(1), mlp), (attn, mlp)


class FinalLayer(nn.Module):
    """Modulated norm and projection to patches."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Project tokens x (N, T, D), modulated by (N, 2 D), to (N, T, patch_size^2 * out_channels)."""
        shift, scale = modulation.chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(Backbone):
    """Diffusion transformer with adaLN-Zero conditioning.

    Args:
        input_size: height and width of the input.
        patch_size: side of a patch; divides `input_size`.
        in_channels: channels of the input.
        hidden_size: width D, divisible by `num_heads` and by 4.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        num_classes: labels 0..num_classes-1; `num_classes` itself is the null label.
        learn_sigma: whether the output holds a variance beside the noise (2 C channels).

    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        input_size, patch_size, in_channels = sizes(
            input_size=input_size, patch_size=patch_size, in_channels=in_channels
        )
        hidden_size, depth, num_heads = sizes(hidden_size=hidden_size, depth=depth, num_heads=num_heads)
        (num_classes,) = sizes(num_classes=num_classes)
        mlp_ratio = finite_number("mlp_ratio", mlp_ratio, low=1e-3, high=1e3)
        learn_sigma = truth_value("learn_sigma", learn_sigma)
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(
                f"hidden_size must be a multiple of 4 and of num_heads ({num_heads}), got {hidden_size}; take one"
            )
        if input_size % patch_size:
            raise ValueError(
                f"input_size {input_size} is not a multiple of patch_size {patch_size}; take sides that it divides"
            )
        self.conventions = Conventions(
            name="DiT", schedule="linear", first_timestep=0, guidance="dit", null_label=num_classes
        )
        self.num_embedded_labels = num_classes + 1
        self.input_shape = (in_channels, input_size, input_size)
        self.layer_names = tuple(f"blocks.{b}.{kind}" for b in range(depth) for kind in ("attn", "mlp"))
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.layer_shape = ((input_size // patch_size) ** 2, hidden_size)
        self.condition_size = (6 * depth + 2) * hidden_size

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        position = sincos_position_embedding(hidden_size, input_size // patch_size)
        self.pos_embed = nn.Parameter(position, requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Initialise as published: Xavier linears, N(0, 0.02) embedders, zero gates and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):  # the patch embedding, as the linear layer that it is
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in [*self.t_embedder.modules(), self.y_embedder.embedding_table]:
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        modulated = [module for module in self.modules() if isinstance(module, (DiTBlock, FinalLayer))]
        for module in [*(module.adaLN_modulation[-1] for module in modulated), self.final_layer.linear]:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def condition(self, t: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        """Return the modulation (N, 6 D) of each block and that of the final layer (N, 2 D)."""
        if y is None:
            raise ValueError(f"DiT needs labels: give y (N,), with {self.conventions.null_label} for no label")
        c = self.t_embedder(t) + self.y_embedder(y)  # (N, D)
        return tuple(module.adaLN_modulation(c) for module in (*self.blocks, self.final_layer))

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict from x and its modulations; see `Backbone.run`."""
        *modulations, final = condition
        x = (self.x_embedder(x) + self.pos_embed).contiguous()  # (N, T, D); patches come channels first
        for index, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            x = layers.run(index, block, x, modulation)  # (N, T, D)
        x = self.final_layer(x, final)  # (N, T, patch_size^2 * out_channels)
        return unpatchify(x, self.patch_size, self.out_channels)
