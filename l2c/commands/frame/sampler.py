"""The sampler of a configuration, with which `sample`, `sample_many` and `evaluate` draw."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from l2c.backbones.presets import ModelPreset, load_backbone
from l2c.graph.binding import scale_in_use
from l2c.graph.cache_graph import CacheGraph
from l2c.io.bundled import model_names
from l2c.io.names import shown
from l2c.sampling.sampler import Sampler
from l2c.sampling.settings import sampler_arguments


def preset_of(cfg: DictConfig, graph: CacheGraph | None, *, otherwise: str = "dit_digits") -> ModelPreset:
    """Return the preset that a config names, else the one that a graph was made for, else `otherwise`.

    Raises:
        ValueError: if the graph is one of a diffusers pipeline.

    """
    model = cfg.get("model")
    named = model is not None or graph is None or graph.model in model_names()
    if graph is not None and not named and graph.solver.endswith("Scheduler"):
        raise ValueError(
            f"the graph was made for {shown(graph.model)} of a diffusers pipeline; "
            "add backend=diffusers pipeline=PATH"
        )
    return ModelPreset.of(model or (otherwise if graph is None else graph.model))


def make_sampler(cfg: DictConfig, *, device: torch.device | None = None) -> Sampler:
    """Return the sampler that a config of `sample`, `sample_many` or `evaluate` asks for.

    Args:
        cfg: with graph, checkpoint, cfg_scale and those of `sampling.settings.sampler_arguments`; a model, a
            solver and a number of evaluations may be named.
        device: of the backbone; None = the CPU.

    Raises:
        ValueError, FileNotFoundError: the graph, the weights or the settings do not fit together.

    """
    graph = CacheGraph.load(cfg.graph) if cfg.graph is not None else None
    preset = preset_of(cfg, graph)
    solver = cfg.get("solver") or {}
    name = solver.get("name")
    num_evaluations = cfg.get("num_evaluations") or solver.get("num_evaluations")
    if graph is None:
        name, num_evaluations = name or preset.sampling.solver, num_evaluations or preset.sampling.num_evaluations
    return Sampler(
        load_backbone(preset, checkpoint=cfg.checkpoint).to(device),
        graph=graph,
        solver=name,
        num_evaluations=num_evaluations,
        cfg_scale=scale_in_use(cfg.cfg_scale, None if graph is None else graph.cfg_scale, solver.get("cfg_scale")),
        solver_options=solver.get("options"),
        **sampler_arguments(cfg),
    )
