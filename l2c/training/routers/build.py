"""What a config's router and data groups stand for: routers, pairs, objective and data module."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig

from l2c.backbones.backbone import Backbone
from l2c.calibration.cost import Cost
from l2c.data.imagenet import ImageNetDataModule
from l2c.data.latents import LatentsDataModule
from l2c.data.noise import NoiseDataModule
from l2c.data.vae import load_vae
from l2c.diffusion import Guidance, Solver
from l2c.graph.predictor import HOLD
from l2c.testbeds.pixel_data import PIXEL_DATA, pixel_data
from l2c.training.routers.budget import BudgetedLearningToCache, share_to_remove
from l2c.training.routers.harmonica import StepwiseDenoising
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import DataPairs, PairSource, TrajectoryPairs
from l2c.training.routers.predicted import StandIn
from l2c.training.routers.routers import Routers, routed_evaluations

DATA = (*PIXEL_DATA, "noise", "prompts", "latents", "imagenet")
FROM_NOISE = ("noise", "prompts")
ROUTERS = ("l2c", "l2c_summed", "budget", "harmonica")


@dataclass(frozen=True)
class Recipe:
    """The parts of one run of router training.

    Attributes:
        routers: the routers.
        data: the data module.
        pairs: makes pairs of its batches.
        objective: what to minimise.

    """

    routers: Routers
    data: pl.LightningDataModule
    pairs: PairSource
    objective: LearningToCache


def make_recipe(cfg: DictConfig, backbone: Backbone, solver: Solver, cost: Cost) -> Recipe:
    """Build what `router=` and `data=` name.

    Raises:
        ValueError: an unknown name, or a setting that does not fit the backbone.

    """
    if cfg.router.name not in ROUTERS:
        raise ValueError(f"unknown router {cfg.router.name!r}; known are {', '.join(ROUTERS)}")
    stepwise = cfg.router.name == "harmonica"
    routed = tuple(range(1, solver.num_evaluations)) if stepwise else routed_evaluations(solver.steps)
    routers = Routers(routed, backbone.num_layers, init=cfg.router.init, seed=cfg.seed)
    if stepwise and cfg.data.name not in FROM_NOISE:
        raise ValueError(
            "router=harmonica trains on the sampler's own trajectories and takes no images, "
            f"got data={cfg.data.name}; say data=noise"
        )
    reuse = cfg.router.get("reuse", HOLD)
    stand_in = StandIn(solver, routers, reuse=reuse, threshold=cfg.router.threshold)
    if stepwise and reuse != HOLD:
        raise ValueError(f"router=harmonica holds what it reuses, got router.reuse={reuse}; say router.reuse=hold")
    data, pairs = make_data(cfg, backbone, solver, routed, None if reuse == HOLD else stand_in)
    weights = layer_weights(cost, cfg.router.penalty_weights)
    shared = {
        "layer_weights": weights,
        "error": cfg.router.error,
        "threshold": cfg.router.threshold,
        "straight_through": cfg.router.straight_through,
    }
    if cfg.router.name == "budget":
        remove = share_to_remove(
            cost, cfg.router.budget, num_evaluations=solver.num_evaluations, num_routed=len(routed)
        )
        budgeted = BudgetedLearningToCache(
            backbone, cost=cost, remove=remove, ascent=cfg.router.ascent, damping=cfg.router.damping, **shared
        )
        return Recipe(routers, data, pairs, budgeted)
    if stepwise:
        walk = StepwiseDenoising(
            backbone,
            solver,
            routers,
            guidance=Guidance(backbone.conventions.guidance, cfg.solver.cfg_scale),
            penalty=cfg.router.penalty,
            error_weights=cfg.router.error_weights,
            weights_every=cfg.router.weights_every,
            weight_images=cfg.router.weight_images,
            seed=cfg.seed,
            **shared,
        )
        return Recipe(routers, data, walk, walk)
    return Recipe(routers, data, pairs, LearningToCache(backbone, penalty=cfg.router.penalty, **shared))


def layer_weights(cost: Cost, kind: str) -> torch.Tensor:
    """Return what each layer's computing costs in the penalty: its share of the layers' MACs, or 1."""
    if kind not in ("macs", "ones"):
        raise ValueError(f"router.penalty_weights must be macs or ones, got {kind!r}")
    macs = torch.tensor(cost.layers, dtype=torch.float64)
    return (macs / macs.sum() if kind == "macs" else torch.ones_like(macs)).float()


def make_data(
    cfg: DictConfig, backbone: Backbone, solver: Solver, routed: tuple[int, ...], stand_in: StandIn | None = None
) -> tuple[pl.LightningDataModule, PairSource]:
    """Return the data module and the way its batches become pairs."""
    if cfg.data.name not in DATA:
        raise ValueError(f"unknown data {cfg.data.name!r}; known are {', '.join(DATA)}")
    if cfg.data.name in FROM_NOISE:
        guidance = Guidance(backbone.conventions.guidance, cfg.solver.cfg_scale)
        limit = cfg.data.get("num_trajectories")
        if limit is not None and stand_in is not None:
            raise ValueError(
                f"data.num_trajectories={limit} stores pairs, but with router.reuse=linear they follow the routers; "
                "say data.num_trajectories=null or router.reuse=hold"
            )
        noise = NoiseDataModule(
            backbone.input_shape,
            backbone.num_labels,
            len(routed),
            cfg.data.batch_size,
            seed=cfg.seed,
            num_trajectories=limit,
        )
        return noise, TrajectoryPairs(
            backbone,
            solver,
            routed,
            guidance=guidance,
            seed=cfg.seed,
            num_trajectories=limit,
            store_outputs=cfg.data.get("store_outputs", False),
            stand_in=stand_in,
        )
    images = _images(cfg, backbone)
    pairs = DataPairs(
        backbone,
        solver,
        routed,
        seed=cfg.seed,
        label_dropout=cfg.router.label_dropout,
        visits=cfg.router.visits,
        round_times=cfg.router.round_times,
        stand_in=stand_in,
    )
    return images, pairs


def _images(cfg: DictConfig, backbone: Backbone) -> pl.LightningDataModule:
    """Return the data module of real images or their latents."""
    if cfg.data.name in ("latents", "imagenet"):
        fitting = {
            "image_shape": backbone.input_shape,
            "num_labels": backbone.num_labels,
            "vae_scale": cfg.data.vae_scale,
            "batch_size": cfg.data.batch_size,
            "seed": cfg.seed,
            "num_workers": cfg.data.num_workers,
        }
        if cfg.data.name == "latents":
            return LatentsDataModule(cfg.data.folder, **fitting)
        return ImageNetDataModule(cfg.data.folder, load_vae(cfg.data.vae), **fitting)
    return pixel_data(
        cfg.data.name,
        image_shape=backbone.input_shape,
        num_labels=backbone.num_labels,
        batch_size=cfg.data.batch_size,
        seed=cfg.seed,
        **{str(name): value for name, value in cfg.data.items() if name not in ("name", "batch_size")},
    )
