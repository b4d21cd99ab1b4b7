"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) in the conventions of the publications."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

GUIDANCE_MODES = ("dit", "uvit", "cfg", "embedded")
NEUTRAL_SCALE = {"dit": 1.0, "uvit": 0.0, "cfg": 1.0}


@dataclass(frozen=True)
class Guidance:
    """How a conditional and an unconditional output become one.

    Attributes:
        mode: `dit`: uncond + s (cond - uncond) on the first three channels, the others conditional (the rule
            of the published DiT code, which its figures were made with); `uvit`: cond + s (cond - uncond);
            `cfg`: uncond + s (cond - uncond) on all channels, as diffusers' pipelines have it; `embedded`: s is an
            input of the network, which needs no unconditional pass (guidance-distilled models).
        scale: s; None or the neutral value (`dit` and `cfg` 1.0, `uvit` 0.0) switches guidance off.

    """

    mode: str
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in GUIDANCE_MODES:
            raise ValueError(f"unknown guidance {self.mode!r}; known are {', '.join(GUIDANCE_MODES)}")

    @property
    def active(self) -> bool:
        """Whether an unconditional pass is needed at all."""
        return self.mode != "embedded" and self.scale is not None and self.scale != NEUTRAL_SCALE[self.mode]

    def combine(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Merge two outputs (N, C or 2 C, H, W) of the same x into one."""
        assert self.scale is not None, "an inactive guidance has nothing to combine"
        if self.mode == "uvit":
            return cond + self.scale * (cond - uncond)
        if self.mode == "cfg":
            return uncond + self.scale * (cond - uncond)
        guided = cond.clone()
        guided[:, :3] = uncond[:, :3] + self.scale * (cond[:, :3] - uncond[:, :3])
        return guided
