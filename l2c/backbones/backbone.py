"""The interface of all backbones, and the conventions of their publications."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2c.backbones.digest import weights_checksum, weights_digest, with_switches
from l2c.backbones.layer_cache import BlockCall, LayerCache, LayerOutput, LayerPlan, Pass, Row
from l2c.backbones.single_plan import SinglePlan
from l2c.diffusion.prediction import check_prediction
from l2c.diffusion.schedule import named_or_betas
from l2c.graph.binding import GUIDANCES
from l2c.graph.given import text
from l2c.io.names import chosen, quoted
from l2c.io.numbers import finite_number, scalar, whole_number


@dataclass(frozen=True)
class PublishedSampling:
    """Sampling settings of the weights' publication.

    Attributes:
        solver: name of the solver.
        num_evaluations: number of evaluations of a trajectory.
        cfg_scale: guidance scale in the convention of the weights; None = none is published.

    Raises:
        ValueError: if an attribute is of another type or out of range.

    """

    solver: str
    num_evaluations: int
    cfg_scale: float | None = None

    def __post_init__(self) -> None:
        text("the published solver", self.solver)
        count = whole_number("the published num_evaluations", self.num_evaluations, low=1)
        object.__setattr__(self, "num_evaluations", count)
        if self.cfg_scale is not None:
            object.__setattr__(self, "cfg_scale", finite_number("the published cfg_scale", self.cfg_scale))


@dataclass(frozen=True)
class Conventions:
    """Conventions of the weights: schedule, timesteps, guidance, prediction.

    Attributes:
        name: the preset's name, or the class name for a backbone that was built by hand.
        schedule: noise schedule the weights were trained with, `linear`, `scaled_linear`, `cosine`, `flow`, or (T,)
            betas of one of its own.
        first_timestep: value of t that the network is given at the least noisy training step
            (DiT counts 0..999, U-ViT 1..1000).
        guidance: what `cfg_scale` means, `dit` or `uvit` (see `l2c.diffusion.guidance`).
        null_label: label of the unconditional class; None for weights that have none.
        prediction: what the output is, `noise`, `v`, `data` or `flow` (see `l2c.diffusion.prediction`).
        published: how the publication samples; None for a backbone that was built by hand.
        guidance_options: of a pipeline's model, further arguments of calls that say how they are guided, by name.

    Raises:
        ValueError: if an attribute is of another type or unknown.

    """

    name: str
    schedule: str | tuple[float, ...]
    first_timestep: int
    guidance: str
    null_label: int | None
    prediction: str = "noise"
    published: PublishedSampling | None = None
    guidance_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text("the name of a model", self.name)
        object.__setattr__(self, "schedule", named_or_betas(self.schedule))
        chosen("guidance", self.guidance, GUIDANCES)
        check_prediction(self.prediction)
        first = whole_number("first_timestep", self.first_timestep, low=0, high=1000)
        object.__setattr__(self, "first_timestep", first)
        if self.null_label is not None:
            object.__setattr__(self, "null_label", whole_number("null_label", self.null_label, low=0))


def sizes(**given: object) -> list[int]:
    """Return sizes of a network as Python's integers.

    Args:
        given: the sizes by name.

    Raises:
        ValueError: if one is no integer of at least 1; a float is none.

    """
    for name, value in given.items():
        if isinstance(scalar(value), float):
            raise ValueError(f"{name} must be an integer, got {quoted(value)} ({type(value).__name__})")
    return [whole_number(name, value, low=1, high=2**20) for name, value in given.items()]


def class_name(module: nn.Module) -> str:
    """Return the name of a module's own class, for which FSDP puts one that it makes of it (`FSDPDiT`)."""
    return next(kind.__name__ for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed"))


class Backbone(nn.Module, ABC):
    """A frozen noise-prediction network whose residual branches can be reused across evaluations.

    Attributes:
        conventions: schedule, timestep and guidance conventions of the weights.
        layer_names: names of the 2L layers, index `2 b` attention and `2 b + 1` MLP of block b.
        input_shape: (C, H, W) of one input image or latent.
        num_embedded_labels: rows of the label table, the null label included; 0 for a backbone without labels.
        layer_shape: (T, D), tokens and width of a layer's output; None where not known.
        layers_per_block: layers of one block of a pass, 2 or, where layers are found by name, 1.
        scale_at: returns the guidance scale at t that counts in the place of the sampler's; None = that counts.
        condition_size: numbers that `condition` returns for one sample.
        gated: whether a layer's contribution is scaled by a gate that depends on t; where not, what a block with
            both layers reused adds is the sum of the two outputs, and its class has `reuse(*inputs, total)`.
        recompute_activations: in passes with gradients, keep only each block's input and compute the block again
            on the way back: less memory, about a third more time.

    """

    conventions: Conventions
    layer_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    num_embedded_labels: int
    layer_shape: tuple[int, int] | None = None
    layers_per_block: int = 2
    scale_at: Callable[[float], float | None] | None = None
    condition_size: int = 2
    gated: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.known_fingerprint: tuple[str, str] | None = None  # digest and checksum, see `fingerprint`
        self.recompute_activations = False

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Backbone:
        # A cast rounds the weights; the fingerprint is that of the weights before.
        probe = torch.empty(0)
        known = None
        if fn(probe).dtype != probe.dtype and not any(p.is_meta for p in self.parameters()):
            first = next(self.parameters()).dtype == torch.float32
            known = fingerprint(self) if first or self.known_fingerprint is not None else None
        result = super()._apply(fn, recurse)
        if known is not None:
            self.known_fingerprint = known, weights_checksum(with_switches(self))
        return result

    @property
    def dtype(self) -> torch.dtype:
        """The type of an input: that of the weights."""
        return next(self.parameters()).dtype

    @property
    def num_layers(self) -> int:
        """Number of layers, 2 per block."""
        return len(self.layer_names)

    @property
    def kept_numbers(self) -> int | None:
        """Numbers of one layer's output for one sample, T x D; None where not known."""
        return None if self.layer_shape is None else math.prod(self.layer_shape)

    @property
    def num_labels(self) -> int:
        """Number of conditional labels, 0..num_labels-1; 0 for a backbone without labels."""
        return self.num_embedded_labels - (self.conventions.null_label is not None)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict from noisy input, computing every layer.

        Args:
            x: (N, C, H, W), noisy images or latents.
            t: (N,), timesteps as the network counts them.
            y: (N,), labels, the null label included; None for a backbone without labels.

        Returns:
            (N, C, H, W) predicted noise, or (N, 2 C, H, W) noise and variance for `learn_sigma`.

        """
        row, keep = (True,) * self.num_layers, (False,) * self.num_layers
        return self.forward_cached(x, t, y, row, keep=keep)[0]

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        row: Row,
        cache: Sequence[LayerOutput] | None = None,
        keep: Sequence[bool] | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """Predict with some layers reused; row and cache are data, the backbone keeps no state.

        Args:
            x: (N, C, H, W), noisy images or latents.
            t: (N,), timesteps as the network counts them.
            y: (N,), labels, the null label included; None for a backbone without labels.
            row: 2L decisions, True = compute and False = reuse, or a float tensor (2L,) of soft weights.
            cache: 2L layer outputs (N, T, D) of an earlier evaluation, None where nothing is kept.
            keep: 2L bools, which outputs to return for later evaluations; None = all.

        Returns:
            The output as `forward` gives it, and the new cache: for each layer the output that it just
            contributed (computed, reused or blended) where `keep` says so, else None.

        Raises:
            ValueError: if a length differs from 2L, or a layer is reused with nothing cached for it.

        """
        plan = self.plan(row, cache, keep)
        return self.run(x, self.condition(t, y), plan), plan.new_cache

    def plan(
        self,
        row: Row,
        cache: Sequence[LayerOutput] | None = None,
        keep: Sequence[bool] | None = None,
        call: BlockCall | None = None,
    ) -> LayerPlan:
        """Return the pass of `forward_cached`; `call` runs the blocks, see `Pass`."""
        kind = SinglePlan if self.layers_per_block == 1 else LayerPlan
        return kind(self.layer_names, row, cache, keep, call or self._call)

    def _call(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run one block, by activation checkpointing where asked for."""
        if self.recompute_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def condition(self, t: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        """Return all that depends on timesteps t (N,) and labels y (N,) alone; each part begins with N.

        Known before sampling starts: a sampler asks once for many evaluations, with N rows for each.
        """
        return (t,) if y is None else (t, y)

    def parts(self, y: Tensor | None) -> list[Tensor] | None:
        """Return groups of batch indices (N_i,) of labels y (N,) that can share one forward; None: one group."""
        return None

    @abstractmethod
    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict from x (N, C, H, W) and its `condition`; `layers` decides and keeps."""


def fingerprint(backbone: Backbone) -> str:
    """Return a digest of names, shapes and values of the weights (as 32-bit floats), `sha256:...`.

    Switches of the network that are not at their defaults count too (`frequency_shift` of a DiT from diffusers). It
    is worked out once and remembered, and worked out anew where one of these has changed since, in whatever way; see
    `l2c.backbones.digest` for what either costs. After a cast to fewer bits it stays that of the weights before.

    Raises:
        ValueError: if the weights have no values that can be read (meta device, some quantised tensors).

    """
    weights = with_switches(backbone)
    checksum = weights_checksum(weights)
    if backbone.known_fingerprint is None or backbone.known_fingerprint[1] != checksum:
        backbone.known_fingerprint = weights_digest(weights), checksum
    return backbone.known_fingerprint[0]


def known_by(backbone: Backbone) -> dict[str, str]:
    """Return what tells a backbone from others by name: `weights`, and `pipeline` where it is one with its prompts.

    The latter is a digest of conditions and scheduler, see `PipelineBackbone.origin`.
    """
    origin = getattr(backbone, "origin", None)
    return {"weights": fingerprint(backbone), **({} if origin is None else {"pipeline": origin})}
