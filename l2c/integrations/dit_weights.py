"""Our DiT and diffusers' DiTTransformer2DModel: the same network under other names.

diffusers keeps query, key and value apart and repeats the embedders of time and label in every block. Its frequencies
of time also end elsewhere than the published ones (`downscale_freq_shift` 1 for 0); each conversion carries the value
over, so that outputs are equal. It is not part of diffusers' configuration: a saved model is loaded with 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import class_name
from l2c.backbones.dit import DiT

KINDS = {"attn": "attn1", "mlp": "ff"}
BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
EMBEDDERS = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
REST = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def diffusers_layer_names(layers: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """Return the layers of our DiT under the names of diffusers' one; other names, and other models', as they are."""
    if class_name(model) != "DiTTransformer2DModel":
        return tuple(layers)
    matches = [re.fullmatch(r"blocks\.(\d+)\.(attn|mlp)", name) for name in layers]
    return tuple(
        f"transformer_blocks.{match[1]}.{KINDS[match[2]]}" if match else name
        for match, name in zip(matches, layers, strict=True)
    )


def to_diffusers(backbone: DiT) -> Any:
    """Return a DiTTransformer2DModel with the weights of a DiT: frozen, in eval mode, equal outputs.

    Raises:
        ValueError: if the label table is not one that diffusers can hold.

    """
    from diffusers import DiTTransformer2DModel

    channels, size, _ = backbone.input_shape
    attention: Any = backbone.blocks[0].get_submodule("attn")
    model = DiTTransformer2DModel(
        num_attention_heads=attention.num_heads,
        attention_head_dim=backbone.hidden_size // attention.num_heads,
        in_channels=channels,
        out_channels=backbone.out_channels,
        num_layers=len(backbone.blocks),
        sample_size=size,
        patch_size=backbone.patch_size,
        num_embeds_ada_norm=backbone.num_labels,
        norm_eps=1e-6,
    )
    weights = _split(backbone.state_dict(), len(backbone.blocks))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    problems = [key for key in missing if "pos_embed.pos_embed" not in key] + unexpected
    if problems:
        raise ValueError(
            f"the DiT does not fit diffusers' one, which disagrees about {problems[0]}; "
            "it holds the published form alone"
        )
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = backbone.t_embedder.frequency_shift
    return model.eval().requires_grad_(False)


def from_diffusers(model: Any) -> DiT:
    """Return our DiT with the weights of a DiTTransformer2DModel: frozen, in eval mode, equal outputs.

    Raises:
        ValueError: if the model is of another class, or another network under that name.

    """
    if class_name(model) != "DiTTransformer2DModel":
        raise ValueError(
            f"need a DiTTransformer2DModel, got {type(model).__name__}; other classes take a graph by l2c.apply"
        )
    config = model.config
    blocks = list(model.transformer_blocks)
    if abs(blocks[0].norm1.norm.eps - 1e-6) > 1e-9 or abs(blocks[0].norm3.eps - 1e-6) > 1e-9:
        raise ValueError(
            f"norm_eps is {blocks[0].norm3.eps:g}, but the published DiT has 1e-06; load it with norm_eps=1e-6"
        )
    backbone = DiT(
        input_size=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        hidden_size=config.num_attention_heads * config.attention_head_dim,
        depth=len(blocks),
        num_heads=config.num_attention_heads,
        num_classes=config.num_embeds_ada_norm,
        learn_sigma=model.out_channels == 2 * config.in_channels,
    )
    weights = {"pos_embed": backbone.pos_embed, **_joined(model.state_dict(), len(blocks))}
    backbone.load_state_dict(weights, strict=True)
    backbone.t_embedder.frequency_shift = int(blocks[0].norm1.emb.time_proj.downscale_freq_shift)
    return backbone.eval().requires_grad_(False)


def _split(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return diffusers' state dict of ours."""
    result: dict[str, Tensor] = {}
    for ours, theirs in REST.items():
        _copy(weights, ours, result, theirs)
    for b in range(depth):
        block = f"transformer_blocks.{b}"
        for ours, theirs in BLOCK.items():
            _copy(weights, f"blocks.{b}.{ours}", result, f"{block}.{theirs}")
        for ours, theirs in EMBEDDERS.items():
            _copy(weights, ours, result, f"{block}.{theirs}")
        for kind in ("weight", "bias"):
            parts = weights[f"blocks.{b}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                result[f"{block}.attn1.{name}.{kind}"] = part
    return result


def _joined(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return our state dict of diffusers'; the embedders are the first block's."""
    result: dict[str, Tensor] = {}
    for ours, theirs in REST.items():
        _copy(weights, theirs, result, ours)
    for ours, theirs in EMBEDDERS.items():
        _copy(weights, f"transformer_blocks.0.{theirs}", result, ours)
    for b in range(depth):
        block = f"transformer_blocks.{b}"
        for ours, theirs in BLOCK.items():
            _copy(weights, f"{block}.{theirs}", result, f"blocks.{b}.{ours}")
        for kind in ("weight", "bias"):
            parts = [weights[f"{block}.attn1.{name}.{kind}"] for name in ("to_q", "to_k", "to_v")]
            result[f"blocks.{b}.attn.qkv.{kind}"] = torch.cat(parts)
    return result


def _copy(source: Mapping[str, Tensor], name: str, target: dict[str, Tensor], new: str) -> None:
    for kind in ("weight", "bias"):
        if f"{name}.{kind}" in source:
            target[f"{new}.{kind}"] = source[f"{name}.{kind}"]
