"""The networks that are measured, with weights of no meaning, and graphs with the published numbers of layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.task import Task
from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone, model_preset
from l2c.graph.cache_graph import CacheGraph
from l2c.integrations.smoothcache import import_smoothcache
from l2c.policies.context import PolicyContext
from l2c.policies.methods.random_layers import counted_layers
from l2c.sampling.sampler import Sampler

PRESETS = {"dit": "dit_xl2", "uvit": "uvit_h2"}
TINY: dict[str, dict[str, Any]] = {
    "dit": {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 10},
    "uvit": {"img_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 11},
}
# Layers that the published routers of DiT-XL/2 compute in each routed evaluation, noisiest first (of 56), and the
# shares of layers that those of U-ViT-H/2 remove in the routed evaluations altogether.
DIT_COUNTS = {
    20: (0, 0, 4, 8, 26, 53, 55, 55, 55, 56),
    50: (0, 1, 0, 0, 3, 1, 2, 6, 7, 8, 11, 26, 29, 36, 54, 54, 55, 55, 55, 55, 56, 55, 55, 56, 56),
}
UVIT_REMOVED = {20: 0.6379, 50: 0.9368}


@dataclass(frozen=True)
class Network:
    """A frozen backbone on its device.

    Attributes:
        kind: `dit` or `uvit`.
        backbone: in 32 bits, its weights random and none of them zero throughout.
        solver: solver of its publication.
        cfg_scale: guidance scale of its publication.

    """

    kind: str
    backbone: Backbone
    solver: str
    cfg_scale: float | None

    def sampler(self, num_evaluations: int, **options: Any) -> Sampler:
        """Return an uncached sampler; options as a Sampler takes them."""
        return Sampler(
            self.backbone, solver=self.solver, num_evaluations=num_evaluations, cfg_scale=self.cfg_scale, **options
        )

    def graph(self, num_evaluations: int, router: Path | None = None) -> CacheGraph:
        """Return a graph that computes as many layers as the published router.

        Args:
            num_evaluations: 20 and 50 are published; another takes the counts of 20.
            router: read instead of drawn, where it is one of this network and number of evaluations.

        """
        if router is not None and self.kind == "dit" and num_evaluations == 50:
            return import_smoothcache(router, self.backbone, solver=self.solver, routed="l2c")
        context = PolicyContext.of(self.sampler(num_evaluations), weights_bound=False)
        routed, layers = context.alternate, self.backbone.num_layers
        return counted_layers(context.blank, routed, self._counts(num_evaluations, len(routed), layers), seed=0)

    def _counts(self, num_evaluations: int, routed: int, layers: int) -> list[int]:
        published = num_evaluations if num_evaluations in DIT_COUNTS else 20
        if self.kind == "dit":
            counts = DIT_COUNTS[published]
            return [round(counts[i * len(counts) // routed] * layers / 56) for i in range(routed)]
        return spread(round((1 - UVIT_REMOVED[published]) * routed * layers), routed)


def spread(total: int, places: int) -> list[int]:
    """Return whole numbers that add up to a total, as even as can be."""
    return [total * (i + 1) // places - total * i // places for i in range(places)]


def network(task: Task, kind: str) -> Network:
    """Return a network on the task's device: the published size, or a tiny one of the same kind."""
    preset = model_preset(PRESETS[kind])
    if task.tiny:
        conventions = {key: value for key, value in preset.conventions.items() if key != "null_label"}
        preset = replace(preset, args={**preset.args, **TINY[kind]}, conventions=conventions)
    torch.manual_seed(0)
    with torch.device(task.device):  # drawing hundreds of millions of weights on the host takes longer
        backbone = load_backbone(preset, checkpoint="random")
    enliven(backbone)
    backbone = backbone.to(task.device)
    return Network(kind, backbone, preset.sampling.solver, preset.sampling.cfg_scale)


def enliven(module: nn.Module) -> None:
    """Give matrices that begin as zero (gates, the output) random values, so that images come out."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
