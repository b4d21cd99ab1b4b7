"""What a cached trajectory takes on the device beyond an uncached one, beside what the lifetimes predict."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.networks import network
from benchmarks.gpu.task import Task
from l2c.sampling.sampler import Sampler

OPTIONS: dict[str, dict[str, Any]] = {"as computed": {}, "on the host": {"cache_device": "cpu"}}


def measure(task: Task) -> None:
    """Run DiT and U-ViT at several batch sizes, watching the device's memory."""
    for kind in ("dit", "uvit"):
        net = network(task, kind)
        graph = net.graph(6 if task.tiny else 20)
        plain = net.sampler(graph.num_evaluations, precision=task.precision)
        for batch in (1, 2) if task.tiny else (1, 8, 32):
            uncached = _working_memory(task, plain, batch)
            for kept, options in OPTIONS.items():
                task.begin()
                sampler = Sampler(plain.backbone, graph=graph, cfg_scale=net.cfg_scale, any_weights=True, **options)
                cached = _working_memory(task, sampler, batch)
                more = None if cached is None or uncached is None else cached - uncached
                task.send(
                    f"{kind}, {graph.num_evaluations} evaluations, {task.precision}, MB beyond the weights",
                    {
                        "images": batch,
                        "outputs are kept": kept,
                        "uncached": uncached,
                        "cached": cached,
                        "the cache adds": more,
                        "cache, counted": sampler.cache_peak_bytes / 1e6,
                        "cache, predicted": sampler.cache_bytes(batch) / 1e6,
                    },
                )


def _working_memory(task: Task, sampler: Sampler, batch: int) -> float | None:
    """Return the most memory of a trajectory beyond what was there before, in MB; None without such a device."""
    labels = torch.arange(batch, device=task.device) % sampler.backbone.num_labels
    noise = torch.randn(batch, *sampler.backbone.input_shape, device=task.device)
    sampler.sample(labels, noise=noise)  # libraries take memory of their own at the first call
    task.reset_memory()
    before = torch.cuda.memory_allocated(task.device) / 1e6 if task.device.type == "cuda" else 0.0
    sampler.sample(labels, noise=noise)
    peak = task.peak_memory()
    return None if peak is None else peak - before
