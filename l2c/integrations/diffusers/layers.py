"""Finds the layers of a diffusers model by the classes and shapes of its modules, with their forms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.hooks._common import _ATTENTION_CLASSES, _FEEDFORWARD_CLASSES
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from l2c.backbones.foreign_module import check_runs
from l2c.backbones.forwards import INSIDE_COMPILED, without_wrapper
from l2c.backbones.layer_form import Branch, OutputForm, ResidualForm, WholeOutputForm
from l2c.backbones.wrap import WrappedLayer
from l2c.graph.layer_names import WHOLE_OUTPUT, block_of, kinds_asked
from l2c.integrations.diffusers.adapters import bare, plain_parts

LISTS = (nn.ModuleList, nn.ModuleDict)
STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # of a U-Net, in the order in which they run
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


def find_layers(
    model: nn.Module, *, of: tuple[str, ...] | None = None, calls: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Return the names of a model's layers; those inside of what `torch.compile` made have the names without it.

    Blocks are the members of lists of modules. Which of them run, and which work on the prompt alone, is seen in
    forwards alone (`calls`).

    Args:
        model: a diffusers transformer or U-Net.
        of: `layer`: attention and feed-forward of each block, before their gates; `block`: whole blocks, with what
            they add to their input; `resnet`: the ResNet blocks of a U-Net; `output`, alone: what the whole model
            returns. None = `block` for U-Nets (their spatial and temporal transformers, as in Block Caching), else
            `layer`.
        calls: how often each module runs in one forward on what moves, by its name, see `moving_calls`; the k-th call
            of `ff` is a layer of its own, `ff@k`. Others are no layers. None = each runs once.

    Raises:
        ValueError: if a kind is unknown, or no layer is found.

    """
    unet = is_unet(model)
    asked = kinds_asked(of)
    of = (("block",) if unet else ("layer",)) if asked is None else asked
    if of == (WHOLE_OUTPUT,):
        return of
    names: list[str] = []
    if "layer" in of:
        names += [name for prefix, block in _blocks(model) for name in _layers_of(prefix, block)]
    if "block" in of:
        names += _with_attention(model) if unet else [p for p, block in _blocks(model) if _layers_of(p, block)]
    if "resnet" in of:
        names += [name for name, module in _named_modules(model) if _plain_resnet(module)]
    if not names:
        looked_at = ", ".join(dict.fromkeys(type(block).__name__ for _, block in _blocks(model))) or "none"
        raise ValueError(
            f"found no layers of kind {', '.join(of)} in {type(model).__name__} (blocks looked at: {looked_at}); "
            "take its whole output, layers=['output'], or wrap it with l2c.wrap(module, layers=[patterns])"
        )
    names.sort(key=_position(model))
    if calls is None:
        return tuple(names)
    calls = {without_wrapper(name): number for name, number in calls.items()}  # that of the inner module comes last
    ran = [name for name in names if calls.get(name, 0)]
    return tuple(name if k == 0 else f"{name}@{k + 1}" for name in ran for k in range(calls[name]))


def module_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a layer's name, the one inside where it was compiled by `torch.compile`.

    Raises:
        ValueError: if the model has none.

    """
    try:
        return _inner(model.get_submodule(name))
    except AttributeError as error:
        raise ValueError(
            f"{type(model).__name__} has no layer {name}, which the cache graph names; put it back if it was taken "
            "out, or take a graph of this model"
        ) from error


def make_layer(model: nn.Module, name: str) -> WrappedLayer:
    """Return the layer of a name, with its form.

    Raises:
        ValueError: if the model has no such module, or it runs in parts.

    """
    if name == WHOLE_OUTPUT:
        return WrappedLayer(name, model, WholeOutputForm())
    path, _, number = name.partition("@")
    call = int(number) - 1 if number else 0
    module: Any = module_of(model, path)
    check_runs(path, module)
    owner: Any = module_of(model, block_of(path))
    if getattr(owner, "_chunk_size", None) is not None and module is not owner:
        raise ValueError(
            f"{name} runs in chunks, so that its output is never whole; call disable_forward_chunking() first"
        )
    if isinstance(module, ResnetBlock2D):
        return WrappedLayer(name, module, RESNET, call=call)
    if module is not owner and module in (before := _before_last_projection(owner)):
        return WrappedLayer(name, module, OutputForm(), before[module], call)
    whole_block = block_of(path) == path and not (_is_attention(module) and not _holds_layers(module))
    if whole_block or getattr(module, "residual_connection", False):
        return WrappedLayer(name, module, ResidualForm(), call=call)
    return WrappedLayer(name, module, OutputForm(), _norms_before(owner, module), call)


def _inner(module: nn.Module) -> nn.Module:
    return module.get_submodule(INSIDE_COMPILED) if INSIDE_COMPILED in module._modules else module


def _named_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module's children with their names, compiled ones as those that were compiled."""
    yield from ((name, _inner(child)) for name, child in module.named_children())


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a model with their names, compiled ones once, as those that were compiled."""
    named = model.named_modules()
    yield from ((without_wrapper(name), module) for name, module in named if INSIDE_COMPILED not in module._modules)


def is_unet(model: nn.Module) -> bool:
    """Return whether a model has the stages of a U-Net."""
    return all(isinstance(getattr(model, stage, None), nn.ModuleList) for stage in ("down_blocks", "up_blocks"))


def _norms_before(block: Any, module: nn.Module) -> tuple[nn.Module, ...]:
    """Return the norms of a block of DiT or PixArt whose output is modulated for one layer alone."""
    kind = getattr(block, "norm_type", None)
    if not isinstance(block, BasicTransformerBlock) or kind not in _MODULATED or block.pos_embed is not None:
        return ()
    if module is block.attn1:
        return (block.norm1.norm if kind == "ada_norm_zero" else block.norm1,)
    return (block.norm3 if kind == "ada_norm_zero" else block.norm2,) if module is block.ff else ()


def _before_last_projection(block: Any) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """Return the last projection of a block whose branch is not one module, and the modules that feed it alone.

    Flux's single blocks let attention and MLP share their last projection; others hold the two or three matrices of
    their feed-forward themselves.
    """
    if all(isinstance(getattr(block, name, None), nn.Module) for name in ("attn", "proj_mlp", "proj_out")):
        return {block.proj_out: (block.attn, block.proj_mlp)}
    widths = _widths(block)
    linear: dict[Any, Any] = {child: bare(child) for child in block.children() if isinstance(bare(child), nn.Linear)}
    for child, down in linear.items():
        inner = down.in_features
        ups = [c for c, up in linear.items() if up.in_features in widths and up.out_features in (inner, 2 * inner)]
        if down.out_features in widths and inner not in widths and ups:
            return {child: tuple(ups)}
    return {}


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the members of lists of modules with their names, at any depth but inside of one that holds layers."""
    outer: list[str] = []
    for prefix, modules in _named_modules(model):
        if not isinstance(modules, LISTS) or prefix.startswith(tuple(outer)):
            continue
        for name, block in _named_children(modules):
            if not isinstance(block, LISTS):
                yield f"{prefix}.{name}", block
                if _layers_of("", block):
                    outer.append(f"{prefix}.{name}.")


def _layers_of(prefix: str, block: nn.Module) -> list[str]:
    """Return the layers of a block, and those of the parts of it that hold layers themselves."""
    if _is_attention(block) and not _holds_layers(block):
        return [prefix]
    fused = _before_last_projection(block)
    left_out = {module for silent in fused.values() for module in silent}
    found: list[str] = []
    for name, child in _named_children(block):
        if child in left_out or isinstance(child, LISTS):
            continue
        if child in fused or _is_attention(child):
            found.append(f"{prefix}.{name}")
        elif any(map(_is_attention, child.modules())):
            found += _layers_of(f"{prefix}.{name}", child)
        elif _is_feed_forward(child, block):
            found.append(f"{prefix}.{name}")
    return found


def _holds_layers(module: nn.Module) -> bool:
    return any(_is_attention(child) for _, child in _named_children(module))


def _is_attention(module: nn.Module) -> bool:
    """Return whether a module has projections of queries and keys of its own."""
    if isinstance(module, _ATTENTION_CLASSES):
        return True
    names = {name for name, _ in module.named_children()}
    return bool({"to_q", "to_qkv", "qkv", "q", "q_proj", "to_q_proj", "img_qkv_proj"} & names)


def _is_feed_forward(module: nn.Module, block: nn.Module) -> bool:
    """Return whether a module maps tokens to tokens by two matrices or more, through another width."""
    if isinstance(module, _FEEDFORWARD_CLASSES):
        return True
    if "Norm" in type(module).__name__ or isinstance(bare(module), nn.Linear):
        return False
    widths = _widths(block)
    parameters = [p for part in plain_parts(module) for p in part.parameters(recurse=False)]
    matrices = [p.shape for p in parameters if p.ndim >= 2 and min(p.shape[:2]) > 1]
    ups = [shape for shape in matrices if shape[1] in widths]
    downs = [shape for shape in matrices if shape[0] in widths]
    # A gate doubles the inner width of the way up.
    through = any(up[0] in (down[1], 2 * down[1]) for up in ups for down in downs if up is not down)
    own = [p for part in module.modules() for p in _own_parameters(part)]
    # Experts are matrices (E, inner, D) of the module itself; a table (1, 6, D) modulates.
    return through or any(p.ndim == 3 and len(p) > 1 and set(p.shape[1:]) & widths for p in own)


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [] if isinstance(module, nn.Conv1d) else list(module.parameters(recurse=False))


def _widths(block: nn.Module) -> set[int]:
    """Return the widths of the tokens that a block's attention takes, which may lie deeper."""
    return {
        projection.in_features
        for part in block.modules()
        if part is not block and _is_attention(part)
        for projection in plain_parts(part)
        if isinstance(projection, nn.Linear)
    }


def _with_attention(model: nn.Module) -> list[str]:
    """Return the largest modules of a U-Net's stages that hold attention and no convolutions of its own."""
    found: list[str] = []
    for name, module in _named_modules(model):
        if name.split(".")[0] not in STAGES or isinstance(module, nn.ModuleList):
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        parts = list(module.modules())
        if any(map(_is_attention, parts)) and not any(map(_is_convolution, parts)):
            found.append(name)
    return found


def _is_convolution(module: nn.Module) -> bool:
    """Return whether a module mixes places next to each other."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and max(module.kernel_size) > 1


def _plain_resnet(module: Any) -> bool:
    return isinstance(module, ResnetBlock2D) and module.upsample is None and module.downsample is None


def _position(model: nn.Module):  # type: ignore[no-untyped-def]
    """Return a key that orders names as the model runs them.

    A U-Net lists its middle last, and the attentions of a block before its ResNet blocks, each of which runs first.
    """
    order = {name: index for index, (name, _) in enumerate(_named_modules(model))}

    def key(name: str) -> tuple[int, int, float, int]:
        found = re.match(r"(.+)\.(resnets|attentions)\.(\d+)", name)
        block, place = (name, 0.0) if found is None else (found[1], int(found[3]) + 0.5 * (found[2] == "attentions"))
        return STAGES.get(name.split(".")[0], 0), order[block], place, order[name]

    return key
