"""Calibrating DiT-XL/2: seconds and memory of each measurement, beside sampling the same trajectories."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.networks import network
from benchmarks.gpu.task import Task
from l2c.calibration.changes import measure_changes
from l2c.calibration.responses import measure_responses
from l2c.io.memory import out_of_memory


def measure(task: Task) -> None:
    """Sample, measure changes, then responses, with activations kept and recomputed."""
    net = network(task, "dit")
    evaluations, count, ages = (4, 2, 2) if task.tiny else (20, 4, 4)
    sampler = net.sampler(evaluations, precision=task.precision)
    backbone = sampler.backbone
    labels = torch.arange(count)
    noise = torch.randn(count, *backbone.input_shape)
    probes = 2

    def responses() -> None:
        measure_responses(sampler, labels[:1], noise[:1], num_probes=probes, max_age=ages, batch_size=1)

    def recomputing() -> None:
        backbone.recompute_activations = True
        try:
            responses()
        finally:
            backbone.recompute_activations = False

    sampler.sample(labels, noise=noise)
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "sampling": (count, lambda: sampler.sample(labels, noise=noise)),
        "changes": (count, lambda: measure_changes(sampler, labels, noise, max_age=ages, batch_size=count)),
        f"responses, {probes} probes": (1, responses),
        f"responses, {probes} probes, activations recomputed": (1, recomputing),
    }
    for name, (trajectories, run) in runs.items():
        task.begin()
        task.reset_memory()
        try:
            seconds: float | None = task.seconds(run) / trajectories
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            seconds = None
        task.send(
            f"DiT-XL/2, {evaluations} evaluations, {task.precision}, ages up to {ages}",
            {
                "measured": name,
                "trajectories": trajectories,
                "seconds a trajectory": "out of memory" if seconds is None else seconds,
                "device MB": task.peak_memory(),
            },
        )
