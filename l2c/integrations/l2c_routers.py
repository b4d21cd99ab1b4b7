"""Routers of other projects as cache graphs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import ModelPreset
from l2c.backbones.shapes import backbone_shapes
from l2c.backbones.weights import reason_of
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import made_by
from l2c.io.bundled import at_home
from l2c.io.json_fields import TORCH, check_form
from l2c.io.names import near_keywords, shown
from l2c.io.numbers import finite_number
from l2c.io.tensors import not_finite
from l2c.sampling.binding import binding_of, solver_for


@near_keywords()
def import_l2c_router(
    path: str | Path,
    backbone: str | ModelPreset | Backbone,
    *,
    solver: str,
    num_evaluations: int,
    threshold: float,
) -> CacheGraph:
    """Read a router file of the Learning-to-Cache code as a cache graph.

    Both layouts hold one tensor of 2L logits per key `"{i}.prob"`; a layer is computed where
    sigmoid(logit) > threshold. DiT files hold them under `routers` with i counting timesteps upwards, even i
    routed. U-ViT files (DPM-Solver 2S) hold them at top level with i the solver step; steps 1 and up are routed
    at their first evaluation. In both the first evaluation computes everything.

    Args:
        path: the `.pt` or `.pth` file.
        backbone: the backbone it was trained for, its preset, or the name of that.
        solver: solver of the routers, `ddim` (DiT) or `dpm_solver_2s` (U-ViT).
        num_evaluations: its number of evaluations.
        threshold: the router's threshold; published: 0.1 (DiT at 256), 0.9 (DiT at 512, U-ViT).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no router file, of another depth or number of evaluations, or its logits are no
            finite numbers.

    """
    routers = _read(at_home(path))
    network = backbone if isinstance(backbone, Backbone) else backbone_shapes(backbone)
    announced = solver_for(network, solver, num_evaluations)
    num_evaluations, threshold = announced.num_evaluations, finite_number("threshold", threshold)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}; published are 0.1 and 0.9")
    if len(routers) != num_evaluations:
        raise ValueError(
            f"{shown(path, 300)} holds {len(routers)} routers, which do not fit {solver} with "
            f"{num_evaluations} evaluations; give the number of evaluations that it was trained for"
        )
    router_of = _router_of(solver, num_evaluations)
    rows = [(True,) * network.num_layers] * num_evaluations
    for evaluation, i in router_of.items():
        logits = _logits(path, routers, i, network)
        rows[evaluation] = tuple((torch.sigmoid(logits) > threshold).tolist())
    binding = binding_of(network, announced, weights_bound=network is backbone)
    return CacheGraph.blank(
        binding,
        rows=tuple(rows),
        routed=tuple(sorted(router_of)),
        provenance=made_by("l2c", {"threshold": threshold}, imported_from=Path(path).name),
    )


def _router_of(solver: str, num_evaluations: int) -> dict[int, int]:
    """Return the number of the router of each routed evaluation."""
    if solver == "dpm_solver_2s":
        router_of = {2 * i: i for i in range(1, (num_evaluations + 1) // 2)}
    else:
        router_of = {num_evaluations - 1 - i: i for i in range(0, num_evaluations, 2)}
    router_of.pop(0, None)  # of an odd number of steps the first would be routed with nothing cached yet
    return router_of


def _logits(path: str | Path, routers: Mapping[str, Tensor], i: int, network: Backbone) -> Tensor:
    """Return the logits (2L,) of router i, or refuse them."""
    logits = routers.get(f"{i}.prob")
    if logits is None:
        raise ValueError(
            f"{shown(path, 300)} has no router '{i}.prob'; its routers must be numbered from 0 on; download it again"
        )
    if logits.numel() != network.num_layers:
        raise ValueError(
            f"{shown(path, 300)} has {logits.numel()} logits per router, but {network.conventions.name} has "
            f"{network.num_layers} layers; give the backbone that it was trained for"
        )
    if not logits.is_floating_point() or not_finite({"logits": logits}):
        raise ValueError(
            f"{shown(path, 300)} has logits in router '{i}.prob' that are no finite numbers; the training "
            "that wrote it failed: train or download it again"
        )
    return logits.flatten()


def _read(path: Path) -> Mapping[str, Tensor]:
    """Return `{"i.prob": logits}` of either layout; runs no code of the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no router file at {shown(path, 300)}; give the path of the downloaded .pt or .pth file"
        )
    check_form(path, TORCH)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the published DiT files hold one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own exception
        raise ValueError(f"cannot read a router from {shown(path, 300)}: {reason_of(error)}") from error
    if isinstance(content, Mapping) and isinstance(content.get("routers"), Mapping):
        content = content["routers"]
    routers = {k: v for k, v in content.items() if str(k).endswith(".prob")} if isinstance(content, Mapping) else {}
    if not routers or not all(isinstance(v, Tensor) for v in routers.values()):
        raise ValueError(
            f"{shown(path, 300)} holds no routers: expected tensors named '0.prob', '1.prob', ...; give the file "
            "that the training wrote"
        )
    return routers
