"""How much layers and blocks change from evaluation to evaluation, in one pass over uncached trajectories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from l2c.backbones.dit import DiT
from l2c.backbones.layer_form import RESIDUAL
from l2c.backbones.uvit import UViT
from l2c.backbones.wrap import WrappedModule
from l2c.sampling.sampler import Sampler


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Return ||now - before||_1 / ||now||_1 of outputs (N, T, D), averaged over N (Block Caching, eq. 3)."""
    size = now.abs().flatten(1).sum(1).clamp_min(torch.finfo(now.dtype).tiny)  # a layer that gives 0 has not changed
    return ((now - before).abs().flatten(1).sum(1) / size).mean()


@torch.no_grad()
def measure_changes(
    sampler: Sampler, labels: Tensor | None, noise: Tensor, *, max_age: int = 3, batch_size: int = 16
) -> dict[str, Tensor]:
    """Return `layer_change` (K, E, L) and `block_change` (K, E, B) against outputs 1..K = max_age evaluations old.

    Entries whose older output would lie before evaluation 0 are 0. Without `block_change` where a wrapped module's
    blocks cannot be told. Blocks are measured by what they add to their
    input. With guidance both halves count alike.

    Args:
        sampler: uncached; brings solver, guidance and backbone.
        labels: (N,) labels; None for a backbone without.
        noise: (N, C, H, W), one trajectory each.
        max_age: the oldest output compared with, in evaluations.
        batch_size: trajectories at a time.

    """
    backbone, guidance = sampler.backbone, sampler.guidance
    num_evaluations, num_layers = sampler.solver.num_evaluations, backbone.num_layers
    layer_change = torch.zeros(max_age, num_evaluations, num_layers, dtype=torch.float64)
    block_change = torch.zeros(max_age, num_evaluations, len(_blocks(backbone)), dtype=torch.float64)
    weight = next(backbone.parameters())
    device = weight.device
    everything = (True,) * num_layers
    residuals: list[Tensor] = []
    wrapped = isinstance(backbone, WrappedModule)
    collect = _wrapped_collector(backbone, residuals) if wrapped else _collector(backbone, residuals)
    hooks = [block.register_forward_hook(collect, with_kwargs=wrapped) for block in _blocks(backbone)]
    try:
        with tqdm(total=-(-len(noise) // batch_size) * num_evaluations, desc="changes", unit="evaluation") as bar:
            for start in range(0, len(noise), batch_size):
                part = slice(start, start + batch_size)
                share = len(noise[part]) / len(noise)
                y = None if labels is None else labels[part].to(device)
                if guidance.active and y is not None:
                    y = torch.cat([y, torch.full_like(y, backbone.conventions.null_label or 0)])
                past: list[list[Tensor]] = []  # newest first; the layers, then the blocks

                def evaluate(x: Tensor, t: float, y: Tensor | None = y, past: list[list[Tensor]] = past) -> Tensor:
                    x = (torch.cat([x, x]) if guidance.active else x).to(weight.dtype)
                    residuals.clear()
                    output, layers = backbone.forward_cached(
                        x, torch.full((len(x),), t, device=device), y, everything
                    )
                    past.insert(0, [*(layer for layer in layers if layer is not None), *residuals])
                    del past[max_age + 1 :]
                    output = output.float()
                    return guidance.combine(*output.chunk(2)) if guidance.active else output

                def compare(e: int, share: float = share, past: list[list[Tensor]] = past) -> None:
                    for age in range(1, min(e, max_age) + 1):
                        for unit, (now, before) in enumerate(zip(past[0], past[age], strict=True)):
                            value = share * float(relative_change(now, before))
                            if unit < num_layers:
                                layer_change[age - 1, e, unit] += value
                            else:
                                block_change[age - 1, e, unit - num_layers] += value
                    bar.update()

                sampler.solver.sample(evaluate, noise[part].to(device), on_evaluation=compare)
    finally:
        for hook in hooks:
            hook.remove()
    if len(residuals) < block_change.shape[2]:  # of a wrapped module whose blocks are never called as such
        return {"layer_change": layer_change.float()}
    return {"layer_change": layer_change.float(), "block_change": block_change.float()}


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    if isinstance(backbone, DiT):
        return list(backbone.blocks)
    if isinstance(backbone, WrappedModule):
        return backbone.blocks()
    assert isinstance(backbone, UViT)
    return [*backbone.in_blocks, backbone.mid_block, *backbone.out_blocks]


def _collector(backbone: nn.Module, residuals: list[Tensor]):  # type: ignore[no-untyped-def]
    """Return a hook that appends what a block adds to its input (of a U-ViT's out-block: after the skip)."""

    def collect(module: nn.Module, inputs: tuple[Tensor, ...], result: tuple[Tensor, tuple[Tensor, Tensor]]) -> None:
        x, (attn, mlp) = result
        residuals.append(x - inputs[0] if isinstance(backbone, DiT) else attn + mlp)

    return collect


def _wrapped_collector(backbone: Any, residuals: list[Tensor]):  # type: ignore[no-untyped-def]
    """Return a hook that appends what a block of a wrapped module adds to its input."""
    forms = {layer.module: layer.form for layer in backbone.layers}

    def collect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not args and "hidden_states" not in kwargs:
            return
        branch = forms.get(module, RESIDUAL).branch(module, args, kwargs, output)
        streams = (branch,) if isinstance(branch, Tensor) else branch
        residuals.append(torch.cat([stream for stream in streams if stream is not None], dim=1))

    return collect
