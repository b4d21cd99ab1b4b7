"""One run of router training, from a backbone and settings to a cache graph."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from l2c.backbones.backbone import Backbone, known_by
from l2c.calibration.cost import Cost, count_macs
from l2c.data.numbered import identity_of
from l2c.data.processes import is_first_process
from l2c.data.share import parts
from l2c.diffusion import Solver
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import takes, text
from l2c.graph.predictor import stand_ins
from l2c.graph.statistics import made_by
from l2c.io.atomic import write_text
from l2c.io.bundled import at_home
from l2c.io.lazy import needed
from l2c.io.memory import memory_explained, remedies
from l2c.io.names import quoted
from l2c.io.numbers import truth_value
from l2c.report.figures import graph_heatmap, save_figure
from l2c.sampling.binding import binding_of, solver_for
from l2c.sampling.gradients import check_weights
from l2c.training.checkpoints import check_checkpoint
from l2c.training.restoring import check_restorable, fit
from l2c.training.routers.heatmap import RouterHeatmap
from l2c.training.routers.lit_router import LitRouter
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.predicted import reuse_under
from l2c.training.routers.settings import FROM_NOISE, BudgetSettings, NoiseSettings, RouterTraining
from l2c.training.routers.setup import RouterSetup, set_up_routers
from l2c.training.run_folder import claimed, resume_from
from l2c.training.settings import LoggerSettings
from l2c.training.trainer import make_run_trainer

PATHS = ("data.folder", "data.vae")  # settings that say where data are
RESULTS = ("cache_graph.json", "graph.png", "routers.png")


@dataclass(frozen=True)
class TrainedRouters:
    """The result of a run.

    Attributes:
        graph: the exported cache graph.
        cost: MACs of the backbone, that the graph is measured by.
        folder: the run's folder, with `cache_graph.json`, `graph.png`, `routers.png`, `last.ckpt`, `run.json`.
        advice: one sentence on what to change where the graph reuses nothing; else None.

    """

    graph: CacheGraph
    cost: Cost
    folder: Path
    advice: str | None = None


def own_objective(name: str, value: Any) -> type[LearningToCache]:
    """Return a class of an objective; refuse what is none."""
    if not (isinstance(value, type) and issubclass(value, LearningToCache)):
        raise ValueError(f"{name} must be a class derived from LearningToCache, got {quoted(value)}")
    return value


@takes(
    backbone=Backbone,
    settings=RouterTraining,
    images=pl.LightningDataModule,
    objective=own_objective,
    any_weights=truth_value,
    config=text,
)
def train_routers(
    backbone: Backbone,
    settings: RouterTraining,
    folder: str | Path,
    *,
    images: pl.LightningDataModule | None = None,
    objective: type[LearningToCache] = LearningToCache,
    any_weights: bool = False,
    config: str | None = None,
) -> TrainedRouters:
    """Train routers and export them.

    Args:
        backbone: the frozen network.
        settings: settings of the run.
        folder: folder of the run.
        images: the data module, where the data set is none of `routers.settings.DATA`; by a method `identity` it may
            say digests of its data by name, which a resumed run must share.
        objective: a class of your own in the place of the one of `router=l2c`.
        any_weights: the graph is not tied to the backbone's weights, because they are random.
        config: the command's whole configuration, kept as `config.yaml`.

    Raises:
        ValueError, FileNotFoundError: if a setting, the weights or the data do not fit; nothing is written then.
            Also if the loss is not finite; the last good checkpoint stays.
        OSError: if the folder cannot be written.
        MemoryError: if memory runs out; the message says what lowers the use.
        SystemExit: if Ctrl-C, SIGTERM or SIGHUP comes (130, 143, 129); `last.ckpt` is of the last whole step.

    """
    place = at_home(folder)
    check_weights(backbone, backbone.conventions.name)
    backbone.recompute_activations = settings.recompute_activations
    solver = solver_for(backbone, settings.solver.name, settings.solver.num_evaluations, **settings.solver.options)
    cost = count_macs(backbone)
    setup = set_up_routers(settings, backbone, solver, cost, images, objective)
    identity = {
        "model": backbone.conventions.name,
        **known_by(backbone),
        **({} if objective is LearningToCache else {"objective": objective.__qualname__}),
        **_identity(settings, identity_of(setup.data)),
    }
    checkpoint = resume_from(settings.resume, place)
    if checkpoint is not None:
        weights, most = setup.routers.state_dict(), settings.trainer.max_steps
        check_checkpoint(checkpoint, "routers.", weights, settings=identity, max_steps=most)
    module, trainer = _trainer(settings, place, solver, setup, identity)
    for part in parts(trainer):
        part.within(settings.data.batch_size)  # refuses what cannot be split, before other processes are started
    check_restorable(checkpoint, module, trainer)
    with claimed(place, identity, resumed=checkpoint, results=RESULTS):
        if config is not None and is_first_process():
            write_text(place / "config.yaml", config)
        with memory_explained(lambda: _memory_sentence(settings, backbone, trainer)):
            fit(trainer, module, setup.data, checkpoint)
        graph = _export(settings, backbone, solver, setup, cost, steps=trainer.global_step, any_weights=any_weights)
        if trainer.is_global_zero:
            graph.save(place / "cache_graph.json")
            save_figure(graph_heatmap(graph), place / "graph.png")
    return TrainedRouters(graph, cost, place, None if graph.removed_fraction else _advice(settings))


def _identity(settings: RouterTraining, data: dict[str, str]) -> dict[str, Any]:
    """Return the settings that a resumed run must share; where data are known by digests they may lie elsewhere."""
    paths = PATHS if data else ()
    return {name: value for name, value in settings.identity().items() if name not in paths} | data


def _trainer(
    settings: RouterTraining, folder: Path, solver: Solver, setup: RouterSetup, identity: dict[str, Any]
) -> tuple[LitRouter, pl.Trainer]:
    """Return the Lightning module and its Trainer."""
    router = settings.router
    module = LitRouter(
        setup.routers,
        setup.pairs,
        setup.objective,
        learning_rate=router.learning_rate,
        clamp=router.clamp,
        threshold=router.threshold,
    )
    arguments = settings.trainer.arguments()
    if arguments["strategy"] == "auto" and (arguments["devices"] != 1 or arguments["num_nodes"] > 1):
        arguments["strategy"] = "ddp_find_unused_parameters_true"  # a step visits one router alone
    trainer = make_run_trainer(
        folder,
        **arguments,
        use_distributed_sampler=False,  # the data modules split each step's batch themselves
        logger=_loggers(settings, folder),
        checkpoint_every=settings.checkpoint_every_n_steps,
        checkpoint_name="routers-{step}",
        callbacks=[RouterHeatmap(folder, solver.timesteps, settings.heatmap_every_n_steps)],
        identity=identity,
        mend="lower router.learning_rate, or check that the weights and images are finite",
    )
    return module, trainer


def _advice(settings: RouterTraining) -> str:
    """Say what to raise where a graph reuses nothing."""
    start = f"nothing is reused after {settings.trainer.max_steps} steps: every layer is computed"
    if isinstance(settings.router, BudgetSettings):
        return f"{start}; lower router.budget (now {settings.router.budget})"
    return (
        f"{start}; raise trainer.max_steps, router.penalty (now {settings.router.penalty:g}) or router.learning_rate"
    )


def _memory_sentence(settings: RouterTraining, backbone: Backbone, trainer: pl.Trainer) -> str:
    """Say what was trained when memory ran out, and what takes less."""
    data = settings.data
    parts = trainer.world_size * trainer.accumulate_grad_batches
    halves = f"trainer.accumulate_grad_batches={2 * trainer.accumulate_grad_batches} (the same batch, half at a time)"
    mend = {
        halves: data.batch_size % (2 * parts) == 0,
        "recompute_activations=true": not settings.recompute_activations,
        "trainer.precision=bf16-mixed": trainer.precision == "32-true",
        "data.store_outputs=false": isinstance(data, NoiseSettings) and data.store_outputs,
        "a smaller data.batch_size": data.batch_size > trainer.world_size,
    }
    return (
        f"out of memory in training the routers of {backbone.conventions.name} with data.batch_size="
        f"{data.batch_size}, {data.batch_size // parts} of them at a time in a process, and "
        f"trainer.precision={trainer.precision}; {remedies(*(way for way, helps in mend.items() if helps))}"
    )


def _loggers(settings: RouterTraining, folder: Path) -> list[Logger]:
    """Return the logger: CSV files in the run's folder, or Weights & Biases (offline without a key)."""
    logger: LoggerSettings = settings.logger
    if logger.name == "csv":
        return [CSVLogger(folder, name="metrics")]
    has_key = "WANDB_API_KEY" in os.environ or Path("~/.netrc").expanduser().is_file()
    with needed("wandb", "logger=wandb needs", "wandb"):
        import_module("wandb")  # Lightning's own error names no package
    return [
        WandbLogger(
            project=logger.project,
            name=logger.run_name,
            save_dir=folder,
            offline=logger.offline or not has_key,
            config=settings.to_dict(),
        )
    ]


def _export(
    settings: RouterTraining,
    backbone: Backbone,
    solver: Solver,
    setup: RouterSetup,
    cost: Cost,
    *,
    steps: int,
    any_weights: bool,
) -> CacheGraph:
    """Threshold the routers and say what the graph is valid for."""
    routers = setup.routers.cpu()
    # Pairs from noised images know no guidance, so their graph is valid for any scale.
    scale = settings.solver.cfg_scale if settings.data.name in FROM_NOISE else None
    binding = binding_of(backbone, solver, weights_bound=not any_weights, guidance=scale)
    rows = setup.objective.rows(routers, solver.num_evaluations)
    graph = CacheGraph.blank(
        binding,
        rows=rows,
        routed=routers.evaluations,
        **stand_ins(rows, reuse_under(solver, settings.router.reuse)),
        provenance=made_by(
            settings.router.name,
            settings.router.to_dict(),
            data=settings.data.to_dict(),
            steps=steps,
            seed=settings.seed,
            torch=torch.__version__,
        ),
    )
    return graph.replace(measured=cost.measured(graph))
