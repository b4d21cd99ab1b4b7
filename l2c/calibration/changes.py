"""Changes of layers and blocks between evaluations, measured in one pass over uncached trajectories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone
from l2c.backbones.dit import DiT
from l2c.backbones.layer_form import ResidualForm, joined
from l2c.backbones.parts import alike
from l2c.backbones.uvit import UViT
from l2c.backbones.whole_output import WholeOutput
from l2c.backbones.wrap import WrappedModule
from l2c.sampling.batches import in_batches
from l2c.sampling.guided import GuidedBackbone
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

    Entries whose older output would lie before evaluation 0 are 0. Blocks are measured by what they add to their
    input; `block_change` is left out if a wrapped module never calls its blocks as such. With guidance both
    branches count alike.

    Args:
        sampler: uncached; brings solver, guidance and backbone.
        labels: (N,) labels; None for a backbone without.
        noise: (N, C, H, W), one trajectory each.
        max_age: the oldest output compared with, in evaluations.
        batch_size: trajectories at a time.

    """
    backbone = sampler.backbone
    device = next(backbone.parameters()).device
    total = -(-len(noise) // batch_size) * sampler.solver.num_evaluations
    with _BlockOutputs(backbone) as blocks, tqdm(total=total, desc="changes", unit="evaluation") as bar:
        sums = _Changes(max_age, sampler.solver.num_evaluations, backbone.num_layers + blocks.count)
        for _, chosen, part in in_batches(labels, noise, batch_size):
            network = GuidedBackbone(backbone, None if chosen is None else chosen.to(device), sampler.guidance)
            sums.begin(len(part) / len(noise))

            def evaluate(x: Tensor, t: float, network: GuidedBackbone = network) -> Tensor:
                blocks.added.clear()
                output, layers = network.full(x, t)
                sums.add([*layers, *blocks.of_batch()])
                bar.update()
                return output

            sampler.solver.sample(evaluate, part.to(device))
    change = sums.change.float()
    found = {"layer_change": change[:, :, : backbone.num_layers], "block_change": change[:, :, backbone.num_layers :]}
    if len(blocks.added) < blocks.count:  # of a wrapped module whose blocks are never called as such
        del found["block_change"]
    return found


class _Changes:
    """Sums of the relative changes of all units, layers first and then blocks, over batches of trajectories.

    Args:
        max_age: the oldest output compared with, in evaluations.
        num_evaluations: evaluations of a trajectory.
        num_units: layers and blocks.

    Attributes:
        change: (K, E, units), the weighted sum over the batches so far.

    """

    def __init__(self, max_age: int, num_evaluations: int, num_units: int) -> None:
        self.change = torch.zeros(max_age, num_evaluations, num_units, dtype=torch.float64)
        self._past: list[list[Tensor]] = []  # the units' outputs, newest evaluation first
        self._evaluation, self._share = 0, 1.0

    def begin(self, share: float) -> None:
        """Start the next batch, which is a share of all trajectories."""
        self._past, self._evaluation, self._share = [], 0, share

    def add(self, outputs: list[Tensor]) -> None:
        """Add what the next evaluation's outputs changed against those of the evaluations before."""
        max_age, e = len(self.change), self._evaluation
        for age, past in enumerate(self._past[:max_age], start=1):
            for unit, (now, before) in enumerate(zip(outputs, past, strict=True)):
                self.change[age - 1, e, unit] += self._share * float(relative_change(now, before))
        self._past = [outputs, *self._past[: max_age - 1]]
        self._evaluation += 1


class _BlockOutputs:
    """Collects by hooks, while entered, what the blocks of a backbone add to their input in a pass.

    Attributes:
        added: (N, T, D) of each block that was called, in order; to be cleared before each pass.
        count: number of blocks.

    """

    def __init__(self, backbone: Backbone) -> None:
        self.added: list[Tensor] = []
        self._wrapped = isinstance(backbone, WrappedModule)
        self._blocks = _blocks(backbone)
        self._collect = (_wrapped_collector if self._wrapped else _collector)(backbone, self.added)
        self._hooks: list[RemovableHandle] = []
        turns = len(backbone.modules_in_turn()) if isinstance(backbone, WrappedModule) else 1
        self.count = len(self._blocks) // turns

    def of_batch(self) -> list[Tensor]:
        """Return `added`, those of parts of the batch that ran apart (`Backbone.parts`) joined."""
        if not self.count or len(self.added) <= self.count or len(self.added) % self.count:
            return self.added
        return [torch.cat(alike(self.added[i :: self.count])) for i in range(self.count)]

    def __enter__(self) -> _BlockOutputs:
        self._hooks = [
            block.register_forward_hook(self._collect, with_kwargs=self._wrapped) for block in self._blocks
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    if isinstance(backbone, WrappedModule):
        return backbone.blocks()
    if isinstance(backbone, WholeOutput):
        return [backbone.whole]
    assert isinstance(backbone, DiT | UViT)
    return list(backbone.blocks)


def _collector(backbone: nn.Module, residuals: list[Tensor]):  # type: ignore[no-untyped-def]
    """Return a hook that appends what a block adds to its input (of a U-ViT's out-block: after the skip).

    A whole output is appended as it is: it is not added to the input.
    """

    def collect(module: nn.Module, inputs: tuple[Tensor, ...], result: tuple[Tensor, tuple[Tensor, Tensor]]) -> None:
        x, (attn, mlp) = result
        if isinstance(backbone, WholeOutput):
            residuals.append(x)
        else:
            residuals.append(x - inputs[0] if isinstance(backbone, DiT) else attn + mlp)

    return collect


def _wrapped_collector(backbone: Any, residuals: list[Tensor]):  # type: ignore[no-untyped-def]
    """Return a hook that appends what a block of a wrapped module adds to its input."""
    forms = {layer.module: layer.form for layer in backbone.layers}

    def collect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not args and "hidden_states" not in kwargs:
            return
        residuals.append(joined(forms.get(module, ResidualForm()).branch(module, args, kwargs, output)))

    return collect
