"""Builds the objects of router training from settings: routers, pairs, objective and data module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from l2c.backbones.backbone import Backbone
from l2c.calibration.cost import Cost
from l2c.data.imagenet import ImageNetDataModule
from l2c.data.latents import LatentsDataModule
from l2c.data.noise import NoiseDataModule
from l2c.data.vae import load_vae
from l2c.diffusion import Guidance, Solver
from l2c.graph.predictor import HOLD
from l2c.training.routers.budget import BudgetedLearningToCache, share_to_remove
from l2c.training.routers.harmonica import StepwiseDenoising
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import DataPairs, PairSource, TrajectoryPairs
from l2c.training.routers.predicted import Predictor
from l2c.training.routers.routers import Routers, routed_evaluations
from l2c.training.routers.settings import (
    DATA,
    BudgetSettings,
    HarmonicaSettings,
    ImagesSettings,
    LatentsSettings,
    NoiseSettings,
    RouterTraining,
)


@dataclass(frozen=True)
class RouterSetup:
    """The objects of one run of router training.

    Attributes:
        routers: the routers.
        data: the data module.
        pairs: makes pairs of its batches.
        objective: the objective to minimise.

    """

    routers: Routers
    data: pl.LightningDataModule
    pairs: PairSource
    objective: LearningToCache


def set_up_routers(
    settings: RouterTraining,
    backbone: Backbone,
    solver: Solver,
    cost: Cost,
    images: pl.LightningDataModule | None = None,
    kind: type[LearningToCache] = LearningToCache,
) -> RouterSetup:
    """Return the objects that the settings name.

    Args:
        settings: settings of the run.
        backbone: the frozen network.
        solver: solver of the trajectory.
        cost: MACs of the backbone.
        images: the data module, where the data set is none of ours (see `routers.settings.DATA`).
        kind: class of the objective, where the settings name no other than `LearningToCache`.

    Raises:
        ValueError: if a setting does not fit the backbone, or images are missing.

    """
    router = settings.router
    if kind is not LearningToCache and isinstance(router, (HarmonicaSettings, BudgetSettings)):
        raise ValueError(
            f"{kind.__name__} takes the place of the objective of router=l2c, but router={router.name} has one of "
            "its own; leave one of them out"
        )
    stepwise = isinstance(router, HarmonicaSettings)
    routed = tuple(range(1, solver.num_evaluations)) if stepwise else routed_evaluations(solver.steps)
    routers = Routers(routed, backbone.num_layers, init=router.init, seed=settings.seed)
    predictor = Predictor(solver, routers, reuse=router.reuse, threshold=router.threshold)
    data, pairs = make_data(settings, backbone, solver, routed, None if router.reuse == HOLD else predictor, images)
    if isinstance(router, HarmonicaSettings):
        walk = _stepwise(settings, router, backbone, solver, routers, cost)
        return RouterSetup(routers, data, walk, walk)
    weights = layer_weights(cost, router.penalty_weights)
    shared: dict[str, Any] = {
        "error": router.error,
        "threshold": router.threshold,
        "straight_through": router.straight_through,
    }
    objective: LearningToCache
    if isinstance(router, BudgetSettings):
        remove = share_to_remove(cost, router.budget, num_evaluations=solver.num_evaluations, num_routed=len(routed))
        objective = BudgetedLearningToCache(
            backbone,
            cost=cost,
            layer_weights=weights,
            remove=remove,
            ascent=router.ascent,
            damping=router.damping,
            **shared,
        )
    else:
        assert router.penalty is not None
        objective = kind(backbone, penalty=router.penalty, layer_weights=weights, **shared)
    return RouterSetup(routers, data, pairs, objective)


def _stepwise(
    settings: RouterTraining,
    router: HarmonicaSettings,
    backbone: Backbone,
    solver: Solver,
    routers: Routers,
    cost: Cost,
) -> StepwiseDenoising:
    assert router.penalty is not None
    return StepwiseDenoising(
        backbone,
        solver,
        routers,
        guidance=Guidance(backbone.conventions.guidance, settings.solver.cfg_scale),
        penalty=router.penalty,
        layer_weights=layer_weights(cost, router.penalty_weights),
        error=router.error,
        threshold=router.threshold,
        straight_through=router.straight_through,
        error_weights=router.error_weights,
        weights_every=router.weights_every,
        weight_images=router.weight_images,
        seed=settings.seed,
    )


def layer_weights(cost: Cost, kind: str) -> torch.Tensor:
    """Return the cost of each layer in the penalty, (2L,): its share of the layers' MACs, or 1."""
    macs = torch.tensor(cost.layers, dtype=torch.float64)
    return (macs / macs.sum() if kind == "macs" else torch.ones_like(macs)).float()


def make_data(
    settings: RouterTraining,
    backbone: Backbone,
    solver: Solver,
    routed: tuple[int, ...],
    predictor: Predictor | None = None,
    images: pl.LightningDataModule | None = None,
) -> tuple[pl.LightningDataModule, PairSource]:
    """Return the data module and the way its batches become pairs; arguments as in `set_up_routers`."""
    data, router = settings.data, settings.router
    if isinstance(data, NoiseSettings):
        noise = NoiseDataModule(
            backbone.input_shape,
            backbone.num_labels,
            len(routed),
            data.batch_size,
            seed=settings.seed,
            num_trajectories=data.num_trajectories,
        )
        return noise, TrajectoryPairs(
            backbone,
            solver,
            routed,
            guidance=Guidance(backbone.conventions.guidance, settings.solver.cfg_scale),
            seed=settings.seed,
            num_trajectories=data.num_trajectories,
            store_outputs=data.store_outputs,
            predictor=predictor,
        )
    pairs = DataPairs(
        backbone,
        solver,
        routed,
        seed=settings.seed,
        label_dropout=router.label_dropout,
        visits=router.visits,
        round_times=router.round_times,
        predictor=predictor,
    )
    return images or _images(settings, backbone), pairs


def _images(settings: RouterTraining, backbone: Backbone) -> pl.LightningDataModule:
    """Return the data module of real images or their latents."""
    data = settings.data
    if not isinstance(data, LatentsSettings):
        raise ValueError(
            f"unknown data {data.name!r}; known are {', '.join(DATA)}, or hand in a data module of images"
        )
    fitting: dict[str, Any] = {
        "image_shape": backbone.input_shape,
        "num_labels": backbone.num_labels,
        "vae_scale": data.vae_scale,
        "batch_size": data.batch_size,
        "seed": settings.seed,
        "num_workers": data.num_workers,
    }
    if isinstance(data, ImagesSettings):
        return ImageNetDataModule(data.folder, load_vae(data.vae), **fitting)
    return LatentsDataModule(data.folder, **fitting)
