"""A step of router training, ours and as published: seconds and memory."""

from __future__ import annotations

from benchmarks.gpu.networks import network
from benchmarks.gpu.task import Task, against
from benchmarks.router_training import Schemes
from l2c.speed.latency import alternate

NAMES = ("published", "frozen", "stored")


def measure(task: Task) -> None:
    """Time the schemes on DiT in turn, then watch the memory of each."""
    net = network(task, "dit")
    batch = 2 if task.tiny else 4
    mixed = f"{task.precision.removeprefix('fp')}-mixed"
    for precision in (mixed,) if task.tiny else (mixed, "32-true"):
        task.begin()
        schemes = Schemes(net.backbone, batch, precision)
        steps = {name: schemes.step(name) for name in NAMES}
        times = alternate(steps, repetitions=task.rounds)
        for name, latency in times.items():
            net.backbone.zero_grad(set_to_none=True)  # of the published scheme
            task.reset_memory()
            steps[name]()
            steps[name]()  # with all gradients and moments there
            task.send(
                f"DiT-XL/2, batch {batch}, {precision}",
                {
                    "scheme": name,
                    "seconds a step": latency.seconds,
                    "over the published": against(latency, times["published"]),
                    "device MB": task.peak_memory(),
                },
            )
