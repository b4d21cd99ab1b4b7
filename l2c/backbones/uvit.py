"""U-ViT (Bao et al., arXiv 2209.12152) with the published state-dict keys.

N: batch, C: channels, H = W: img_size, T: tokens (patches, time and, with labels, the label), D: embed_dim.
A U-ViT of even `depth` has `depth / 2` in-blocks, a middle block and `depth / 2` out-blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone, Conventions, sizes
from l2c.backbones.dit import timestep_embedding, unpatchify
from l2c.backbones.layer_cache import Fresh, Pair, Pass, mix
from l2c.backbones.modules import Attention, Mlp, PatchEmbed
from l2c.io.numbers import finite_number, truth_value, whole_number


class UViTBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self,
        x: Tensor,
        fresh: tuple[Fresh, Fresh] = (True, True),
        cached: Pair = (None, None),
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return x (N, T, D) after both layers, and both layers' outputs."""
        attn = mix(fresh[0], lambda: self.attn(self.norm1(x)), cached[0])
        h = x + attn  # (N, T, D)
        mlp = mix(fresh[1], lambda: self.mlp(self.norm2(h)), cached[1])
        return h + mlp, (attn, mlp)

    def reuse(self, x: Tensor, total: Tensor) -> Tensor:
        """Return x (N, T, D) after both layers, both reused, from the sum of their outputs (N, T, D)."""
        return x + total


class UViTOutBlock(UViTBlock):
    """A block that first merges a long skip connection.

    A class of its own, because compiled graphs are counted per forward: two kinds in one would share the limit.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__(dim, num_heads, mlp_ratio, qkv_bias)
        self.skip_linear = nn.Linear(2 * dim, dim)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        skip: Tensor,
        fresh: tuple[Fresh, Fresh] = (True, True),
        cached: Pair = (None, None),
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return x (N, T, D) after the merge with skip (N, T, D) and both layers, and both layers' outputs."""
        return super().forward(self.skip_linear(torch.cat([x, skip], dim=-1)), fresh, cached)

    def reuse(self, x: Tensor, skip: Tensor, total: Tensor) -> Tensor:  # type: ignore[override]
        """Return x (N, T, D) after the merge and both layers, both reused, from the sum of their outputs."""
        return self.skip_linear(torch.cat([x, skip], dim=-1)) + total


def _depth(depth: int) -> int:
    depth = whole_number("depth", depth, low=0, high=2**20)
    if depth % 2:
        raise ValueError(f"U-ViT's depth must be even (in-blocks and out-blocks pair up), got {depth}")
    return depth


def _check_sizes(img_size: int, patch_size: int, embed_dim: int, num_heads: int) -> None:
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be a multiple of num_heads ({num_heads}), got {embed_dim}; take one")
    if img_size % patch_size:
        raise ValueError(
            f"img_size {img_size} is not a multiple of patch_size {patch_size}; take sides that it divides"
        )


class UViT(Backbone):
    """Vision transformer with long skip connections; time and label are tokens.

    Args:
        img_size: height and width of the input.
        patch_size: side of a patch; divides `img_size`.
        in_chans: channels of the input.
        embed_dim: width D.
        depth: even; the network has `depth + 1` blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        qkv_bias: whether the query, key and value projections have a bias.
        mlp_time_embed: whether the time token passes through an MLP.
        num_classes: labels with the null label as the last one, `num_classes - 1`; -1 = no labels.
        conv: whether a 3x3 convolution follows the output projection.

    """

    gated = False

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 2,
        in_chans: int = 4,
        embed_dim: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        mlp_time_embed: bool = False,
        num_classes: int = -1,
        conv: bool = True,
    ) -> None:
        super().__init__()
        img_size, patch_size, in_chans = sizes(img_size=img_size, patch_size=patch_size, in_chans=in_chans)
        embed_dim, num_heads = sizes(embed_dim=embed_dim, num_heads=num_heads)
        depth = _depth(depth)
        num_classes = whole_number("num_classes", num_classes, low=-1, high=2**20)
        _check_sizes(img_size, patch_size, embed_dim, num_heads)
        mlp_ratio = finite_number("mlp_ratio", mlp_ratio, low=1e-3, high=1e3)
        qkv_bias, conv = truth_value("qkv_bias", qkv_bias), truth_value("conv", conv)
        mlp_time_embed = truth_value("mlp_time_embed", mlp_time_embed)
        labelled, half = num_classes > 0, depth // 2
        self.conventions = Conventions(
            name="UViT",
            schedule="scaled_linear",
            first_timestep=1,
            guidance="uvit",
            null_label=num_classes - 1 if labelled else None,
        )
        self.num_embedded_labels = max(num_classes, 0)
        parts = [f"in_blocks.{b}" for b in range(half)] + ["mid_block"] + [f"out_blocks.{b}" for b in range(half)]
        self.layer_names = tuple(f"{part}.{kind}" for part in parts for kind in ("attn", "mlp"))
        self.input_shape = (in_chans, img_size, img_size)
        self.patch_size, self.embed_dim, self.in_chans = patch_size, embed_dim, in_chans
        self.num_extra_tokens = 2 if labelled else 1
        num_patches = (img_size // patch_size) ** 2
        self.layer_shape = (self.num_extra_tokens + num_patches, embed_dim)
        self.condition_size = self.num_extra_tokens * embed_dim

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.time_embed = (
            nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(), nn.Linear(4 * embed_dim, embed_dim))
            if mlp_time_embed
            else nn.Identity()
        )
        self.label_emb = nn.Embedding(num_classes, embed_dim) if labelled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_extra_tokens + num_patches, embed_dim))

        shape = (embed_dim, num_heads, mlp_ratio, qkv_bias)
        self.in_blocks = nn.ModuleList([UViTBlock(*shape) for _ in range(half)])
        self.mid_block = UViTBlock(*shape)
        self.out_blocks = nn.ModuleList([UViTOutBlock(*shape) for _ in range(half)])
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1) if conv else nn.Identity()
        self.initialize_weights()

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in the order in which they run."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def initialize_weights(self) -> None:
        """Initialise as published: truncated normal (0.02) linears and positions, zero biases."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def condition(self, t: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        """Return the tokens of label and time, (N, 1 or 2, D), without their positions."""
        time_token = self.time_embed(timestep_embedding(t, self.embed_dim).to(self.pos_embed.dtype)).unsqueeze(1)
        if self.label_emb is None:
            return (time_token,)
        if y is None:
            raise ValueError(f"this U-ViT needs labels: give y (N,), with {self.conventions.null_label} for no label")
        return (torch.cat([self.label_emb(y).unsqueeze(1), time_token], dim=1),)

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict from x and its tokens of label and time; see `Backbone.run`."""
        x = torch.cat([*condition, self.patch_embed(x)], dim=1) + self.pos_embed  # (N, T, D)
        skips: list[Tensor] = []
        half = len(self.in_blocks)
        for index, block in enumerate(self.in_blocks):
            x = layers.run(index, block, x)
            skips.append(x)
        x = layers.run(half, self.mid_block, x)
        for index, block in enumerate(self.out_blocks, start=half + 1):
            x = layers.run(index, block, x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, self.num_extra_tokens :]  # (N, patches, patch_size^2 * C)
        return self.final_layer(unpatchify(x, self.patch_size, self.in_chans))
