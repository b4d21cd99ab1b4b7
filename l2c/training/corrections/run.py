"""One run of correction training, from a graph and an uncached sampler to a corrected graph."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from l2c.backbones.backbone import Backbone, known_by
from l2c.backbones.whole_output import under_layers
from l2c.calibration.distillation import Distillation
from l2c.data.noise import NoiseDataModule
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import takes
from l2c.io.bundled import at_home
from l2c.io.memory import halved, memory_explained, remedies
from l2c.io.version import __version__
from l2c.sampling.correction import plan_digest, save_correction
from l2c.sampling.sampler import Sampler
from l2c.sampling.uncached import uncached_of
from l2c.training.checkpoints import check_checkpoint
from l2c.training.corrections.lit_correction import LitCorrection
from l2c.training.corrections.settings import CorrectionSettings
from l2c.training.restoring import check_restorable, fit
from l2c.training.run_folder import claimed, resume_from
from l2c.training.trainer import make_run_trainer, seed_everything

RESULTS = ("cache_graph.json", "cache_graph.safetensors")


@takes(graph=CacheGraph, sampler=Sampler, settings=CorrectionSettings)
def train_correction(graph: CacheGraph, sampler: Sampler, settings: CorrectionSettings, folder: str | Path) -> Path:
    """Train what replaces a graph's reused outputs; write graph and scales, return the graph's path.

    Args:
        graph: the graph to correct; see `check_correctable`.
        sampler: uncached, of the graph's solver; see `uncached_sampler`.
        settings: settings of the run.
        folder: folder of the run.

    Raises:
        ValueError, FileNotFoundError: if the graph or a setting does not fit; nothing is written then. Also if the
            loss is not finite.
        OSError: if the folder cannot be written.
        MemoryError: if memory runs out; the message says what lowers the use.
        SystemExit: if Ctrl-C, SIGTERM or SIGHUP comes; the code is 130, 143 or 129.

    """
    place = at_home(folder)
    seed_everything(settings.seed)
    distillation = Distillation(
        sampler,
        graph,
        loss=settings.loss,
        slopes=settings.slopes,
        scale_shift=settings.scale_shift,
        slope_rate=settings.slope_rate,
        scale_shift_rate=settings.scale_shift_rate,
    )
    identity = {
        "graph": plan_digest(graph),
        **known_by(distillation.backbone),
        "cfg_scale": sampler.guidance.scale,
        **settings.identity(),
    }
    resumed = resume_from(settings.resume, place)
    if resumed is not None:
        check_checkpoint(
            resumed,
            "distillation.",
            distillation.trained(),
            settings=identity,
            max_steps=settings.max_steps,
            word="max_steps",
        )
    trainer = make_run_trainer(
        place,
        accelerator=settings.accelerator,
        devices=1,
        max_steps=settings.max_steps,
        checkpoint_every=20,
        identity=identity,
        mend="lower slope_rate and scale_shift_rate",
        log_every_n_steps=5,
    )
    module = LitCorrection(distillation, max_steps=settings.max_steps)
    check_restorable(resumed, module, trainer)
    with claimed(place, identity, resumed=resumed, results=RESULTS):
        _fit(trainer, module, settings, resumed)
        return _write(distillation, settings, place / "cache_graph.json", trainer.global_step)


def _fit(trainer: pl.Trainer, module: LitCorrection, settings: CorrectionSettings, resumed: Path | None) -> None:
    """Train on noise."""
    backbone = module.distillation.backbone
    noise = NoiseDataModule(backbone.input_shape, backbone.num_labels, 1, settings.batch_size, seed=settings.seed)
    mend = None if settings.loss == "output" else "loss=output, which keeps one evaluation at a time"
    sentence = (
        f"out of memory in training a correction with batch_size={settings.batch_size} and loss={settings.loss}; "
        f"{remedies(halved('batch_size', settings.batch_size), mend)}"
    )
    with memory_explained(lambda: sentence):
        fit(trainer, module, noise, resumed)


def _write(distillation: Distillation, settings: CorrectionSettings, path: Path, steps: int) -> Path:
    """Write the corrected graph, and its scales and shifts beside it."""
    graph = distillation.graph
    said = {
        "loss": settings.loss,
        "steps": steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "l2c": __version__,
    }
    corrected, scale, shift = distillation.cpu().corrected()
    corrected = corrected.replace(provenance={**graph.provenance, "trained": {"slopes": settings.slopes, **said}})
    if scale is not None and shift is not None:
        corrected = save_correction(path.with_suffix(".safetensors"), corrected, scale, shift, **said)
    corrected.save(path)
    return path


def uncached_sampler(
    backbone: Backbone,
    graph: CacheGraph,
    *,
    solver: str | None = None,
    num_evaluations: int | None = None,
    cfg_scale: float | None = None,
) -> Sampler:
    """Return the uncached sampler that a graph's correction is trained against.

    Args:
        backbone: the one that the graph is for.
        graph: the graph to correct.
        solver: name of the solver, which must be the graph's; None = the graph's.
        num_evaluations: number of evaluations, which must be the graph's; None = the graph's.
        cfg_scale: guidance scale; None = the graph's.

    Raises:
        ValueError: if the graph has a correction already, is not of this backbone, or its solver draws noise of its
            own.

    """
    if graph.correction is not None:
        raise ValueError("the graph has a correction already; give the graph that it was trained from")
    # A sampler of the graph refuses what does not fit.
    Sampler(backbone, graph=graph, solver=solver, num_evaluations=num_evaluations, cfg_scale=cfg_scale)
    sampler = uncached_of(graph, under_layers(backbone, graph.layers), cfg_scale=cfg_scale)
    sampler.solver.check_deterministic("training compares images from the same noise")
    return sampler
