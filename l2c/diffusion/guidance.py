"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) in the conventions of the publications."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l2c.graph.binding import GUIDANCES, NEUTRAL_SCALE
from l2c.graph.checks import MAX_SCALE
from l2c.io.names import chosen
from l2c.io.numbers import finite_number


@dataclass(frozen=True)
class Guidance:
    """Combines a conditional and an unconditional output, and computes both as one batch.

    The batch of both branches has 2 N rows, the N conditional ones first; without active guidance it is the batch of
    N itself.

    Attributes:
        mode: `dit`: uncond + s (cond - uncond) on the first three channels, the others conditional (the rule
            of the published DiT code, which its figures were made with); `uvit`: cond + s (cond - uncond);
            `cfg`: uncond + s (cond - uncond) on all channels, as diffusers' pipelines have it; `cfg_normed`: the
            same, scaled to the norm of cond along the last axis (Qwen-Image, Lumina 2); `embedded`: s is an
            input of the network, which needs no unconditional pass (guidance-distilled models).
        scale: s; None or the neutral value (`dit`, `cfg` and `cfg_normed` 1.0, `uvit` 0.0) switches guidance off.

    """

    mode: str
    scale: float | None = None

    def __post_init__(self) -> None:
        chosen("guidance", self.mode, GUIDANCES)
        if self.scale is not None:
            scale = finite_number("the guidance scale", self.scale, low=-MAX_SCALE, high=MAX_SCALE)
            object.__setattr__(self, "scale", scale)

    @property
    def active(self) -> bool:
        """Whether an unconditional pass is needed at all."""
        return self.mode != "embedded" and self.scale is not None and self.scale != NEUTRAL_SCALE[self.mode]

    @property
    def described(self) -> str:
        """The scale in words for people; `none` where guidance is off."""
        return "none" if self.scale is None or self.scale == NEUTRAL_SCALE.get(self.mode) else f"{self.scale:g}"

    def combine(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Merge two outputs (N, C or 2 C, H, W) of the same x into one."""
        assert self.scale is not None, "an inactive guidance has nothing to combine"
        if self.mode == "uvit":
            return cond + self.scale * (cond - uncond)
        if self.mode in ("cfg", "cfg_normed"):
            guided = uncond + self.scale * (cond - uncond)
            return guided if self.mode == "cfg" else guided * (_norm(cond) / _norm(guided))
        guided = cond.clone()
        guided[:, :3] = uncond[:, :3] + self.scale * (cond[:, :3] - uncond[:, :3])
        return guided

    def rows(self, count: int) -> int:
        """Return the number of rows of the network's batch for `count` images: 2 N with active guidance, else N."""
        return 2 * count if self.active else count

    def labels(self, y: Tensor | None, null_label: int | None) -> Tensor | None:
        """Return the labels (2 N,) of both branches for the labels y (N,); without active guidance y itself.

        Args:
            y: conditional labels; None for a network without labels, which allows no active guidance.
            null_label: label of the unconditional branch; None counts as 0.

        """
        if not self.active:
            return y
        assert y is not None, "guidance needs labels; the sampler refuses it for a backbone without a null label"
        return torch.cat([y, torch.full_like(y, null_label or 0)])

    def inputs(self, x: Tensor) -> Tensor:
        """Return the inputs (2 N, C, H, W) of both branches for the states x (N, C, H, W)."""
        return torch.cat([x, x]) if self.active else x

    def merge(self, output: Tensor, scale: float | None = None) -> Tensor:
        """Return the guided output (N, ...) of the output (2 N, ...) of both branches; another scale may be given."""
        guided = self if scale is None else replace(self, scale=scale)
        return guided.combine(*output.chunk(2)) if self.active else output


def _norm(output: Tensor) -> Tensor:
    return output.norm(dim=-1, keepdim=True)
