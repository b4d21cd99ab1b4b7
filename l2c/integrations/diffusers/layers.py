"""Which modules of a diffusers model are layers, by diffusers' own classes, and in what form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.hooks._common import _ATTENTION_CLASSES, _FEEDFORWARD_CLASSES
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from l2c.backbones.layer_form import OUTPUT, RESIDUAL, Branch
from l2c.backbones.wrap import WrappedLayer
from l2c.graph.layer_names import block_of

LAYERS = ("layer", "block", "resnet")
FEED_FORWARDS = ("ff", "ff_context", "mlp")
_MODULATED = ("ada_norm_zero", "ada_norm_single")  # norms of blocks whose norms are modulated: DiT's, PixArt's


class ResnetForm:
    """The layer of a ResNet block: everything but its shortcut."""

    def branch(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Branch:
        """Return the two convolutions' output, before the shortcut is added."""
        return output * module.output_scale_factor - self._shortcut(module, args, kwargs)

    def stand_in(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], branch: Branch) -> Tensor:
        """Return shortcut plus branch."""
        assert isinstance(branch, Tensor)
        return (self._shortcut(module, args, kwargs) + branch) / module.output_scale_factor

    @staticmethod
    def _shortcut(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        x = args[0] if args else kwargs["input_tensor"]
        return x if module.conv_shortcut is None else module.conv_shortcut(x)


RESNET = ResnetForm()


def find_layers(model: nn.Module, *, of: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the names of a model's layers.

    Args:
        model: a diffusers transformer or U-Net.
        of: `layer`: attention and feed-forward of each block, before their gates; `block`: whole blocks, with what
            they add to their input; `resnet`: the ResNet blocks of a U-Net. None = `block` for U-Nets (their
            spatial transformers, as in Block Caching), else `layer`.

    Raises:
        ValueError: an unknown kind, or none is found.

    """
    unet = any(isinstance(module, ResnetBlock2D) for module in model.modules())
    of = of or (("block",) if unet else ("layer",))
    unknown = [kind for kind in of if kind not in LAYERS]
    if unknown:
        raise ValueError(f"cannot look for layers of kind {unknown[0]!r}; known are {', '.join(LAYERS)}")
    names: list[str] = []
    if "layer" in of:
        names += _inner(model)
    if "block" in of:
        names += _spatial(model) if unet else list(dict.fromkeys(map(block_of, _inner(model))))
    if "resnet" in of:
        names += [name for name, module in model.named_modules() if _plain_resnet(module)]
    if not names:
        raise ValueError(
            f"found no layers of kind {', '.join(of)} in {type(model).__name__}; wrap it with "
            "l2c.wrap(module, layers=[patterns]), which takes any module"
        )
    return tuple(sorted(names, key=_position(model)))


def make_layer(model: nn.Module, name: str) -> WrappedLayer:
    """Return the layer of a name, with its form.

    Raises:
        ValueError: the model has no such module, or it runs in parts.

    """
    try:
        module: Any = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no layer {name}") from error
    owner: Any = model.get_submodule(block_of(name))
    if getattr(owner, "_chunk_size", None) is not None and module is not owner:
        raise ValueError(
            f"{name} runs in chunks, so that its output is never whole; call disable_forward_chunking() first"
        )
    if isinstance(module, ResnetBlock2D):
        return WrappedLayer(name, module, RESNET)
    if _fused(owner) and module is owner.proj_out:
        return WrappedLayer(name, module, OUTPUT, (owner.attn, owner.proj_mlp))
    adds_its_input = block_of(name) == name or getattr(module, "residual_connection", False)
    if adds_its_input:
        return WrappedLayer(name, module, RESIDUAL)
    return WrappedLayer(name, module, OUTPUT, _norms_before(owner, module))


def _norms_before(block: Any, module: nn.Module) -> tuple[nn.Module, ...]:
    """Return the norms of a block of DiT or PixArt whose output is modulated for one layer alone."""
    kind = getattr(block, "norm_type", None)
    if not isinstance(block, BasicTransformerBlock) or kind not in _MODULATED or block.pos_embed is not None:
        return ()
    if module is block.attn1:
        return (block.norm1.norm if kind == "ada_norm_zero" else block.norm1,)
    return (block.norm3 if kind == "ada_norm_zero" else block.norm2,) if module is block.ff else ()


def _fused(block: Any) -> bool:
    """Whether a block is one of Flux's single ones, where attention and MLP share their last projection."""
    return all(isinstance(getattr(block, name, None), nn.Module) for name in ("attn", "proj_mlp", "proj_out"))


def _inner(model: nn.Module) -> list[str]:
    """Return attention and feed-forward of the blocks, and the last projection where they share it."""
    return [name for prefix, block in _blocks(model) for name in _layers_of(prefix, block)]


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, modules in model.named_modules():
        if isinstance(modules, nn.ModuleList):
            yield from ((f"{prefix}.{index}", block) for index, block in enumerate(modules))


def _layers_of(prefix: str, block: nn.Module) -> list[str]:
    if _fused(block):
        return [f"{prefix}.proj_out"]
    return [
        f"{prefix}.{name}"
        for name, child in block.named_children()
        if isinstance(child, (*_ATTENTION_CLASSES, *_FEEDFORWARD_CLASSES)) or name in FEED_FORWARDS
    ]


def _spatial(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Transformer2DModel)]


def _plain_resnet(module: Any) -> bool:
    return isinstance(module, ResnetBlock2D) and module.upsample is None and module.downsample is None


def _position(model: nn.Module):  # type: ignore[no-untyped-def]
    """Return a key that orders names as the model runs them.

    A U-Net lists its middle last, and the attentions of a block before its ResNet blocks, each of which runs first.
    """
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    stages = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}

    def key(name: str) -> tuple[int, int, float, int]:
        found = re.match(r"(.+)\.(resnets|attentions)\.(\d+)", name)
        block, place = (name, 0.0) if found is None else (found[1], int(found[3]) + 0.5 * (found[2] == "attentions"))
        return stages.get(name.split(".")[0], 0), order[block], place, order[name]

    return key
