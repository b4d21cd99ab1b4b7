"""One run of scale-shift training, from a graph to a corrected graph."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone, model_names, model_preset
from l2c.calibration.distillation import Distillation
from l2c.commands.backends import configured_backbone, is_pipeline
from l2c.data.noise import NoiseDataModule
from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import check_writable
from l2c.io.version import __version__
from l2c.sampling.correction import save_correction
from l2c.sampling.sampler import Sampler
from l2c.sampling.uncached import uncached_of
from l2c.training.corrections.lit_correction import LitCorrection
from l2c.training.trainer import check_checkpoint, make_trainer


def train_correction(cfg: DictConfig, folder: Path) -> Path:
    """Train as `configs/train_scale_shift.yaml` says; write graph and scales, return the graph's path.

    Raises:
        ValueError, FileNotFoundError: the graph, the weights or a setting do not fit; nothing is written then.

    """
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    pl.seed_everything(cfg.seed, verbose=False)
    graph = CacheGraph.load(cfg.graph)
    distillation = make_distillation(cfg, graph)
    if cfg.resume is not None:
        check_checkpoint(cfg.resume, "distillation.", distillation.trained())
    path = folder / "cache_graph.json"
    check_writable(path)
    backbone = distillation.backbone
    noise = NoiseDataModule(backbone.input_shape, backbone.num_labels, 1, cfg.batch_size, seed=cfg.seed)
    trainer = make_trainer(
        accelerator=cfg.accelerator,
        devices=1,
        max_steps=cfg.max_steps,
        gradient_clip_val=None,
        logger=CSVLogger(folder, name="metrics"),
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=20, save_last=True, enable_version_counter=False)],
        log_every_n_steps=5,
    )
    trainer.fit(LitCorrection(distillation, max_steps=cfg.max_steps), noise, ckpt_path=cfg.resume)
    settings = {
        "loss": cfg.loss,
        "steps": trainer.global_step,
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "l2c": __version__,
    }
    corrected, scale, shift = distillation.cpu().corrected()
    corrected = corrected.replace(provenance={**graph.provenance, "trained": {"slopes": cfg.slopes, **settings}})
    if scale is not None and shift is not None:
        corrected = save_correction(path.with_suffix(".safetensors"), corrected, scale, shift, **settings)
    corrected.save(path)
    return path


def make_distillation(cfg: DictConfig, graph: CacheGraph) -> Distillation:
    """Build the trained part of a graph, its backbone and its sampler.

    Raises:
        ValueError: the graph is corrected already, is not of this backbone, or its solver draws noise of its own.

    """
    if graph.correction is not None:
        raise ValueError(f"{cfg.graph} has a correction already; give the graph that it was trained from")
    asked = cfg.get("solver") or {}
    scales = (cfg.cfg_scale, asked.get("cfg_scale"), graph.cfg_scale)
    scale = next((scale for scale in scales if scale is not None), None)
    backbone, published = _backbone(cfg, graph, scale)
    scale = published if scale is None else scale
    name = None if asked.get("name") == "pipeline" else asked.get("name")
    steps = asked.get("num_evaluations")
    Sampler(backbone, graph=graph, solver=name, num_evaluations=steps, cfg_scale=scale)  # refuses what does not fit
    sampler = uncached_of(graph, backbone, cfg_scale=scale)
    if sampler.solver.stochastic:
        raise ValueError(
            f"training compares images from the same noise, but {graph.solver} adds noise of its own; "
            "take a graph of a deterministic solver (ddim with eta 0, dpm_solver_2s, dpm_solver_2m; of a pipeline "
            "DDIMScheduler, DPMSolverMultistepScheduler)"
        )
    return Distillation(
        sampler,
        graph,
        loss=cfg.loss,
        slopes=cfg.slopes,
        scale_shift=cfg.scale_shift,
        slope_rate=cfg.slope_rate,
        scale_shift_rate=cfg.scale_shift_rate,
    )


def _backbone(cfg: DictConfig, graph: CacheGraph, scale: float | None) -> tuple[Backbone, float | None]:
    """Return the backbone that a graph is for, and the guidance scale that its preset publishes."""
    model = cfg.get("model")
    if model is not None and is_pipeline(model):
        if cfg.checkpoint is not None:
            raise ValueError("a pipeline brings its own weights; leave checkpoint out, or name another pipeline=PATH")
        backbone = configured_backbone(model, {"num_evaluations": graph.num_evaluations, "cfg_scale": scale})
        if backbone.conventions.name == graph.model and set(backbone.layer_names) != set(graph.layers):
            raise ValueError(
                f"the graph's {graph.num_layers} layers ({graph.layers[0]}, ...) are not the {backbone.num_layers} "
                f"({backbone.layer_names[0]}, ...) that were looked for in {graph.model}; give the kinds that it was "
                "made with, model.layers=[layer], [block] or [block,resnet]"
            )
        return backbone, None
    if model is None and graph.model not in model_names() and graph.solver.endswith("Scheduler"):
        raise ValueError(
            f"the graph was made for {graph.model} of a diffusers pipeline; add backend=diffusers pipeline=PATH"
        )
    preset = model or model_preset(graph.model)
    return load_backbone(preset, checkpoint=cfg.checkpoint), preset.sampling.cfg_scale
