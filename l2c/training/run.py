"""One run of router training, from a config to a cache graph."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from l2c.atomic import replacing
from l2c.backbones.backbone import Backbone
from l2c.backbones.zoo import RANDOM, fingerprint, load_backbone
from l2c.data.digits import DigitsDataModule
from l2c.data.noise import NoiseDataModule
from l2c.diffusion import Guidance, NoiseSchedule, Solver, make_solver
from l2c.evaluation.cost import Cost, count_macs
from l2c.evaluation.figures import graph_heatmap, save_figure
from l2c.graph import CacheGraph
from l2c.training.callbacks import RouterHeatmap
from l2c.training.lit_router import LitRouter
from l2c.training.objectives import LearningToCache
from l2c.training.pairs import DataPairs, PairSource, TrajectoryPairs
from l2c.training.router import Routers, routed_evaluations
from l2c.training.trainer import make_trainer

DATA = ("digits", "noise")
LOGGERS = ("csv", "wandb")


@dataclass(frozen=True)
class TrainedRouters:
    """What a run leaves behind.

    Attributes:
        graph: the exported cache graph.
        cost: MACs of the backbone, to judge the graph by.
        folder: the run's folder, with `cache_graph.json`, `graph.png`, `routers.png`, `last.ckpt`, `config.yaml`.

    """

    graph: CacheGraph
    cost: Cost
    folder: Path


def train_router(cfg: DictConfig, folder: Path) -> TrainedRouters:
    """Train routers as `configs/train_router.yaml` says and export them.

    Raises:
        ValueError, FileNotFoundError: a setting, the weights or the data do not fit; nothing is written then.
        OSError: the folder cannot be written.

    """
    pl.seed_everything(cfg.seed, verbose=False)
    backbone = load_backbone(cfg.model)
    solver = _solver(cfg, backbone)
    routed = routed_evaluations(solver.steps)
    cost = count_macs(backbone)
    routers = Routers(routed, backbone.num_layers, init=cfg.router.init, seed=cfg.seed)
    data, pairs = _data(cfg, backbone, solver, routed)
    module = LitRouter(
        routers,
        pairs,
        LearningToCache(
            backbone,
            penalty=cfg.router.penalty,
            layer_weights=_layer_weights(cost, cfg.router.penalty_weights),
            error=cfg.router.error,
        ),
        learning_rate=cfg.router.learning_rate,
        clamp=cfg.router.clamp,
        threshold=cfg.router.threshold,
    )
    checkpoint = _resume_from(cfg.resume, folder)
    loggers = _loggers(cfg, folder)
    with replacing(folder / "config.yaml") as temporary:  # also the test that the folder can be written
        OmegaConf.save(cfg, temporary, resolve=True)
    trainer = make_trainer(
        **_plain(cfg.trainer),
        logger=loggers,
        callbacks=[
            ModelCheckpoint(
                folder,
                filename="routers-{step}",
                every_n_train_steps=cfg.checkpoint_every_n_steps,
                save_last=True,
            ),
            RouterHeatmap(folder, solver.timesteps, cfg.heatmap_every_n_steps),
        ],
    )
    trainer.fit(module, data, ckpt_path=checkpoint)
    graph = _export(cfg, backbone, solver, routers.cpu(), cost, steps=trainer.global_step)
    if trainer.is_global_zero:
        graph.save(folder / "cache_graph.json")
        save_figure(graph_heatmap(graph), folder / "graph.png")
    return TrainedRouters(graph, cost, folder)


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _solver(cfg: DictConfig, backbone: Backbone) -> Solver:
    conventions = backbone.conventions
    schedule = NoiseSchedule(conventions.schedule, conventions.first_timestep)
    return make_solver(cfg.solver.name, schedule, cfg.solver.num_evaluations, **_plain(cfg.solver.options))


def _layer_weights(cost: Cost, kind: str) -> torch.Tensor:
    """Return what each layer's computing costs in the penalty: its share of the layers' MACs, or 1."""
    if kind not in ("macs", "ones"):
        raise ValueError(f"router.penalty_weights must be macs or ones, got {kind!r}")
    macs = torch.tensor(cost.layers, dtype=torch.float64)
    return (macs / macs.sum() if kind == "macs" else torch.ones_like(macs)).float()


def _data(
    cfg: DictConfig, backbone: Backbone, solver: Solver, routed: tuple[int, ...]
) -> tuple[pl.LightningDataModule, PairSource]:
    """Return the data module and the way its batches become pairs."""
    if cfg.data.name == "digits":
        if backbone.input_shape != DigitsDataModule.image_shape or backbone.num_labels != 10:
            raise ValueError(
                f"data=digits has images {DigitsDataModule.image_shape} of 10 classes, but {cfg.model.name} takes "
                f"{backbone.input_shape} of {backbone.num_labels}; take data=noise, which needs no images"
            )
        pairs: PairSource = DataPairs(
            backbone,
            solver,
            routed,
            seed=cfg.seed,
            label_dropout=cfg.router.label_dropout,
            visits=cfg.router.visits,
            round_times=cfg.router.round_times,
        )
        return DigitsDataModule(cfg.data.batch_size, seed=cfg.seed), pairs
    if cfg.data.name == "noise":
        guidance = Guidance(backbone.conventions.guidance, cfg.solver.cfg_scale)
        data = NoiseDataModule(
            backbone.input_shape, backbone.num_labels, len(routed), cfg.data.batch_size, seed=cfg.seed
        )
        return data, TrajectoryPairs(backbone, solver, routed, guidance=guidance, seed=cfg.seed)
    raise ValueError(f"unknown data {cfg.data.name!r}; known are {', '.join(DATA)}")


def _loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """Return the logger: CSV files in the run's folder, or Weights & Biases (offline without a key)."""
    if cfg.logger.name == "csv":
        return [CSVLogger(folder, name="metrics")]
    if cfg.logger.name == "wandb":
        has_key = "WANDB_API_KEY" in os.environ or Path("~/.netrc").expanduser().is_file()
        try:
            return [
                WandbLogger(
                    project=cfg.logger.project,
                    name=cfg.logger.run_name,
                    save_dir=folder,
                    offline=cfg.logger.offline or not has_key,
                    config=_plain(cfg),
                )
            ]
        except ModuleNotFoundError as error:
            raise ValueError("logger=wandb needs the package wandb; run pip install 'l2c[wandb]'") from error
    raise ValueError(f"unknown logger {cfg.logger.name!r}; known are {', '.join(LOGGERS)}")


def _resume_from(resume: str | None, folder: Path) -> str | None:
    """Return the checkpoint to continue from: none, the folder's last one, or a given file."""
    if resume is None:
        return None
    path = folder / "last.ckpt" if resume == "auto" else Path(resume).expanduser()
    if path.is_file():
        return str(path)
    if resume == "auto":
        return None
    raise FileNotFoundError(
        f"no checkpoint to resume from at {path}; give the last.ckpt of a run, or resume=auto with its hydra.run.dir"
    )


def _export(
    cfg: DictConfig, backbone: Backbone, solver: Solver, routers: Routers, cost: Cost, *, steps: int
) -> CacheGraph:
    """Threshold the routers and say what the graph is valid for."""
    conventions = backbone.conventions
    from_images = cfg.data.name != "noise"
    graph = CacheGraph(
        rows=routers.rows(solver.num_evaluations, cfg.router.threshold),
        layers=backbone.layer_names,
        timesteps=solver.timesteps,
        model=conventions.name,
        solver=solver.name,
        routed=routers.evaluations,
        fingerprint=None if cfg.model.checkpoint == RANDOM else fingerprint(backbone),
        solver_options=solver.options,
        guidance=conventions.guidance,
        # Pairs from noised images know no guidance, so their graph is valid for any scale.
        cfg_scale=None if from_images else cfg.solver.cfg_scale,
        provenance={
            "method": cfg.router.name,
            "hyperparameters": _plain(cfg.router),
            "data": _plain(cfg.data),
            "steps": steps,
            "seed": cfg.seed,
            "l2c": importlib.metadata.version("l2c"),
            "torch": torch.__version__,
        },
    )
    return graph.replace(
        measured={
            "macs_per_evaluation": cost.evaluation,
            "evaluations_worth_of_macs": round(cost.evaluations_worth(graph), 4),
            "macs_speed_up": round(cost.speed_up(graph), 4),
        }
    )
