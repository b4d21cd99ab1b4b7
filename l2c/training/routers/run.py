"""One run of router training, from a config to a cache graph."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import RANDOM
from l2c.calibration.cost import Cost, count_macs
from l2c.commands.backends import configured_backbone
from l2c.diffusion import Solver
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import HOLD
from l2c.io.atomic import replacing
from l2c.io.memory import memory_explained
from l2c.io.version import __version__
from l2c.report.figures import graph_heatmap, save_figure
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import solver_for
from l2c.training.routers.build import FROM_NOISE, Recipe, make_recipe
from l2c.training.routers.heatmap import RouterHeatmap
from l2c.training.routers.lit_router import LitRouter
from l2c.training.trainer import check_checkpoint, make_run_trainer

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
        MemoryError: out of memory; the message says what lowers it.

    """
    pl.seed_everything(cfg.seed, verbose=False)
    backbone = configured_backbone(cfg.model, cfg.solver)
    backbone.recompute_activations = cfg.recompute_activations
    solver = solver_for(backbone, cfg.solver.name, cfg.solver.num_evaluations, **_plain(cfg.solver.options))
    cost = count_macs(backbone)
    recipe = make_recipe(cfg, backbone, solver, cost)
    module = LitRouter(
        recipe.routers,
        recipe.pairs,
        recipe.objective,
        learning_rate=cfg.router.learning_rate,
        clamp=cfg.router.clamp,
        threshold=cfg.router.threshold,
    )
    checkpoint = _resume_from(cfg.resume, folder)
    if checkpoint is not None:
        check_checkpoint(checkpoint, "routers.", recipe.routers.state_dict())
    loggers = _loggers(cfg, folder)
    trainer = make_run_trainer(
        folder,
        **_plain(cfg.trainer),
        use_distributed_sampler=False,  # the data modules split each step's batch themselves
        logger=loggers,
        checkpoint_every=cfg.checkpoint_every_n_steps,
        checkpoint_name="routers-{step}",
        callbacks=[RouterHeatmap(folder, solver.timesteps, cfg.heatmap_every_n_steps)],
    )
    with replacing(folder / "config.yaml") as temporary:  # also the test that the folder can be written
        OmegaConf.save(cfg, temporary, resolve=True)
    with memory_explained(lambda: _memory_sentence(cfg, trainer)):
        trainer.fit(module, recipe.data, ckpt_path=checkpoint)
    graph = _export(cfg, backbone, solver, recipe, cost, steps=trainer.global_step)
    if trainer.is_global_zero:
        graph.save(folder / "cache_graph.json")
        save_figure(graph_heatmap(graph), folder / "graph.png")
    return TrainedRouters(graph, cost, folder)


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _memory_sentence(cfg: DictConfig, trainer: pl.Trainer) -> str:
    """Say what was trained when memory ran out, and what takes less."""
    parts = trainer.world_size * trainer.accumulate_grad_batches
    mend = [f"trainer.accumulate_grad_batches={2 * trainer.accumulate_grad_batches} (the same batch, half at a time)"]
    if not cfg.recompute_activations:
        mend.append("recompute_activations=true")
    if trainer.precision == "32-true":
        mend.append("trainer.precision=bf16-mixed")
    if cfg.data.get("store_outputs", False):
        mend.append("data.store_outputs=false")
    mend.append("a smaller data.batch_size")
    return (
        f"out of memory in training the routers of {cfg.model.name} with data.batch_size={cfg.data.batch_size}, "
        f"{cfg.data.batch_size // parts} of them at a time in a process, and trainer.precision={trainer.precision}; "
        f"say {' or '.join(mend)}"
    )


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
            raise ValueError(
                "logger=wandb needs the package wandb; run pip install '.[wandb]' in a clone of l2c"
            ) from error
    raise ValueError(f"unknown logger {cfg.logger.name!r}; known are {', '.join(LOGGERS)}")


def _resume_from(resume: str | None, folder: Path) -> str | None:
    """Return the checkpoint to continue from: none, the folder's last one, or a given file, not yet checked."""
    if resume is None:
        return None
    path = folder / "last.ckpt" if resume == "auto" else Path(resume).expanduser()
    return None if resume == "auto" and not path.is_file() else str(path)


def _export(
    cfg: DictConfig, backbone: Backbone, solver: Solver, recipe: Recipe, cost: Cost, *, steps: int
) -> CacheGraph:
    """Threshold the routers and say what the graph is valid for."""
    routers = recipe.routers.cpu()
    # Pairs from noised images know no guidance, so their graph is valid for any scale.
    scale = cfg.solver.cfg_scale if cfg.data.name in FROM_NOISE else None
    binding = binding_of(backbone, solver, weights_bound=cfg.model.checkpoint != RANDOM, guidance=scale)
    graph = CacheGraph(
        **binding.fields,
        rows=recipe.objective.rows(routers, solver.num_evaluations),
        routed=routers.evaluations,
        reuse=(cfg.router.get("reuse", HOLD),) * solver.num_evaluations,
        provenance={
            "method": cfg.router.name,
            "hyperparameters": _plain(cfg.router),
            "data": _plain(cfg.data),
            "steps": steps,
            "seed": cfg.seed,
            "l2c": __version__,
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
