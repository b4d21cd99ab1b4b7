"""A pipeline made faster in one call: calibrate, choose, apply, and keep what was found on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from l2c.backbones.backbone import weights_digest
from l2c.calibration.calibration import Calibration, head_of
from l2c.calibration.changes import measure_changes
from l2c.calibration.responses import measure_responses
from l2c.graph.cache_graph import CacheGraph
from l2c.policies.context import Problem
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler, seeded_noise

if TYPE_CHECKING:  # diffusers is optional
    from l2c.integrations.diffusers import CacheGraphs

NEEDS = {"gram": ("changes", "responses"), "block_caching": ("changes",)}
AUTO = ("gram", "block_caching")  # the better one first


def accelerate(
    pipe: Any,
    prompts: Sequence[str] | Sequence[int] | str | Path | None = None,
    *,
    budget: float = 0.5,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    policy: str | None = None,
    options: Mapping[str, Any] | None = None,
    num_trajectories: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
) -> CacheGraph | CacheGraphs:
    """Calibrate a pipeline, make a cache graph for a budget, apply it; found on disk the second time.

    Call the pipeline as ever afterwards, with the same steps and guidance scale; `l2c.remove(pipe)` takes it off.

    Args:
        pipe: a diffusers pipeline.
        prompts: texts or class labels, or a file with one a line; None = a few of ours.
        budget: what the graph may cost, as a share of the uncached MACs, or above 1 in evaluations' worth.
        num_inference_steps: None = the pipeline's own.
        guidance_scale: None = the pipeline's own.
        policy: a policy's name; None = gram where the scheduler passes gradients on and memory allows, else
            block_caching.
        options: further arguments of the pipeline's call, `height` and `width` for example.
        num_trajectories: to calibrate on.
        seed: of their noises.
        folder: where calibrations and graphs are kept; None = `l2c` in the user's cache folder.

    Raises:
        ValueError: a pipeline that cannot be calibrated, a budget out of reach.
        FileNotFoundError: there is no such prompt file.

    """
    from l2c.integrations.diffusers import CacheGraphs, apply_cache_graph, denoisers_of, remove_cache_graph

    defaults = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()}
    steps = defaults["num_inference_steps"] if num_inference_steps is None else num_inference_steps
    scale = defaults.get("guidance_scale") if guidance_scale is None else guidance_scale
    remove_cache_graph(pipe)
    asked = {
        "weights": [weights_digest(model.state_dict()) for model in denoisers_of(pipe).values()],
        "scheduler": [type(pipe.scheduler).__name__, str(dict(pipe.scheduler.config))],
        "prompts": [str(prompt) for prompt in _read(prompts, pipe)],
        "settings": [steps, scale, policy, str(dict(options or {})), num_trajectories, seed],
    }
    place = Path(folder) if folder is not None else _cache_folder()
    place = place / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]
    path = place / f"graph_{budget:g}.json"
    kind = CacheGraphs if len(denoisers_of(pipe)) > 1 else CacheGraph
    if not path.is_file():
        _make(pipe, _read(prompts, pipe), path, budget, steps, scale, policy, options, num_trajectories, seed)
    graph = kind.load(path)
    apply_cache_graph(pipe, graph)
    print((place / f"note_{budget:g}.txt").read_text(encoding="utf-8"), end="")
    return graph


def _read(prompts: Any, pipe: Any) -> list[Any]:
    from l2c.integrations.diffusers.prompts import read_prompts

    if prompts is None or isinstance(prompts, (str, Path)):
        return read_prompts(None if prompts is None else str(prompts), pipe)
    return list(prompts)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2c"


def _make(
    pipe: Any,
    prompts: list[Any],
    path: Path,
    budget: float,
    steps: int,
    scale: float | None,
    policy: str | None,
    options: Mapping[str, Any] | None,
    num_trajectories: int,
    seed: int,
) -> None:
    """Calibrate where that was not done, write the graph and a note of two lines beside it."""
    from l2c.integrations.diffusers.pipeline_backbone import graphs_of, pipeline_backbone

    backbone = pipeline_backbone(pipe, prompts, num_evaluations=steps, guidance_scale=scale, options=options)
    # Prompts of different lengths run one at a time, and so without the empty one beside them.
    batch_size, guided = (1, None) if backbone.lengths_differ else (4, scale)
    sampler = Sampler(backbone, solver="pipeline", num_evaluations=steps, cfg_scale=guided)
    noise = seeded_noise(backbone.input_shape, seed, num_trajectories)
    labels = torch.arange(num_trajectories) % len(prompts)
    graph = None
    for name in AUTO if policy is None else (policy,):
        try:
            problem = Problem.of(sampler, _calibration(sampler, labels, noise, path.parent, name, batch_size))
            graph = make_graph(name, problem, target=budget)
            break
        except (ValueError, torch.OutOfMemoryError):
            if policy is not None or name == AUTO[-1]:
                raise
    assert graph is not None
    graphs = graphs_of(graph, pipe)
    new = seeded_noise(backbone.input_shape, seed + 1, batch_size)
    note = _note(sampler, graph, torch.arange(batch_size) % len(prompts), new, problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"note_{budget:g}.txt").write_text(note, encoding="utf-8")
    graphs.save(path)


def _calibration(
    sampler: Sampler, labels: Tensor, noise: Tensor, folder: Path, policy: str, batch_size: int
) -> Calibration | None:
    """Return what a policy needs, measured now or found in the folder."""
    needs = NEEDS.get(policy, ())
    if not needs:
        return None
    path = folder / f"calibration_{'_'.join(needs)}.safetensors"
    if not path.is_file():
        tensors = measure_changes(sampler, labels, noise, batch_size=batch_size)
        if "responses" in needs:
            tensors["responses"] = measure_responses(sampler, labels, noise, batch_size=1)
        folder.mkdir(parents=True, exist_ok=True)
        Calibration(tensors, head_of(Problem.of(sampler).blank), {"num_trajectories": len(noise)}).save(path)
    return Calibration.load(path)


@torch.no_grad()
def _note(sampler: Sampler, graph: CacheGraph, labels: Tensor, noise: Tensor, problem: Problem) -> str:
    """Return two lines for people: what is saved, and the error on noises that the graph was not made on."""
    plain = sampler.sample(labels, noise=noise).float()
    cached = Sampler(sampler.backbone, graph=graph, solver=None).sample(labels, noise=noise).float()
    error = float((cached - plain).norm() / plain.norm())
    layers = problem.cost.layers
    saved = sum(macs for row in graph.rows for macs, bit in zip(layers, row, strict=True) if not bit)
    share = saved / (problem.cost.evaluation * graph.num_evaluations)
    return (
        f"{graph.provenance.get('method', 'graph')}: {graph.num_reused} of "
        f"{graph.num_evaluations * graph.num_layers} layers are reused, "
        f"which saves {100 * share:.0f} % of the denoiser's MACs\n"
        f"latents of the same noise differ by {100 * error:.1f} % (L2, relative; {len(noise)} new noises)\n"
    )
