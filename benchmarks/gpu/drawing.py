"""Images per second of a run that draws many into files, beside the sampler alone."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.networks import network
from benchmarks.gpu.task import Task
from l2c.drawing.run import sample_images
from l2c.sampling.sampler import Sampler
from l2c.speed.bench import heard


def measure(task: Task) -> None:
    """Draw latents with DiT's graph, with and without the files, eager and captured."""
    net = network(task, "dit")
    graph = net.graph(6 if task.tiny else 20)
    batch, count = (2, 4) if task.tiny else (32, 128)
    labels = torch.arange(batch, device=task.device) % net.backbone.num_labels
    noise = torch.randn(batch, *net.backbone.input_shape, device=task.device)
    for capture in (False, True):
        sampler = Sampler(
            net.backbone, graph=graph, cfg_scale=net.cfg_scale, any_weights=True, precision=task.precision
        )
        if capture:
            sampler.capture()
        said: list[str] = []
        with heard(said):
            sampler.sample(labels, noise=noise)
        alone = batch / task.seconds(lambda sampler=sampler: sampler.sample(labels, noise=noise))  # type: ignore[misc]
        task.begin()
        # Batches are whole and of one size, so that what was captured serves them.
        with TemporaryDirectory() as folder:
            drawn = sample_images(
                sampler,
                Path(folder) / "images",
                num_images=count,
                batch_size=batch,
                shard_size=count // 2,
                trainer=trainer_on(task.device),
            )
        task.send(
            f"DiT-XL/2, {graph.num_evaluations} evaluations, {task.precision}, {batch} at a time",
            {
                "run": "captured" if sampler.captured else "eager (captured failed)" if capture else "eager",
                "images": drawn.num_images,
                "images/s, sample_many": drawn.images_per_second,
                "images/s, sampler alone": alone,
                "share": drawn.images_per_second / alone,
                "why not as asked": said[0] if capture and said and not sampler.captured else None,
            },
        )


def trainer_on(device: torch.device) -> dict[str, Any]:
    """Return the settings of Lightning's Trainer that keep a run on one device."""
    if device.type == "cuda":
        return {"accelerator": "gpu", "devices": [device.index or 0]}
    return {"accelerator": "cpu", "devices": 1}
