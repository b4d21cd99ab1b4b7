"""The ways torch has to compute attention: alone on the shapes of known networks, and in a whole trajectory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.networks import network
from benchmarks.gpu.task import Task, against
from l2c.sampling.execution.compiled import short_reason
from l2c.sampling.sampler import Sampler
from l2c.speed.latency import alternate, synchronize

BACKENDS = {
    "torch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# (N, heads, T, D / heads); with guidance N is twice the number of images
SHAPES = {
    "DiT-XL/2, 1 image": (2, 16, 256, 72),
    "DiT-XL/2, 8 images": (16, 16, 256, 72),
    "U-ViT-H/2, 8 images": (16, 16, 258, 72),
    "DiT-XL/2 at 512, 8 images": (16, 16, 1024, 72),
    "Flux at 1024, 1 image": (1, 24, 4608, 128),
}
CALLS = 20  # of attention in one timed run


def measure(task: Task) -> None:
    """Time every backend on every shape, then DiT's cached trajectory under each."""
    for name, shape in SHAPES.items():
        task.begin()
        q, k, v = (_like_a_projection(task, *((1, 2, 16, 8) if task.tiny else shape)) for _ in range(3))

        def attend(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> None:
            for _ in range(1 if task.tiny else CALLS):
                scaled_dot_product_attention(q, k, v)

        _alternate(task, name, attend, calls=1 if task.tiny else CALLS)
    net = network(task, "dit")
    graph = net.graph(6 if task.tiny else 20)
    batch = 2 if task.tiny else 8
    sampler = Sampler(net.backbone, graph=graph, cfg_scale=net.cfg_scale, any_weights=True, precision=task.precision)
    labels = torch.arange(batch, device=task.device)
    noise = torch.randn(batch, *net.backbone.input_shape, device=task.device)
    task.begin()
    _alternate(
        task, f"cached trajectory of DiT-XL/2, eager, {batch} images", lambda: sampler.sample(labels, noise=noise)
    )


def _like_a_projection(task: Task, n: int, heads: int, tokens: int, width: int) -> torch.Tensor:
    """Return (N, heads, T, D / heads) in memory as a joint projection leaves it."""
    draw = torch.randn(n, tokens, heads, width, device=task.device, dtype=task.dtype)
    return draw.transpose(1, 2)


def _alternate(task: Task, table: str, call: Callable[[], object], *, calls: int = 1) -> None:
    runs: dict[str, Callable[[], object]] = {}
    refused: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        run = call if backend is None else _under(backend, call)
        try:
            run()
            synchronize()
        except RuntimeError as error:
            refused[name] = short_reason(error)
        else:
            runs[name] = run
    times = alternate(runs, repetitions=task.rounds)
    first = next(iter(times.values()))
    for name, latency in times.items():
        ratio = against(latency, first)
        task.send(table, {"backend": name, "ms": 1e3 * latency.seconds / calls, "over torch's choice": ratio})
    for name, reason in refused.items():
        task.send(table, {"backend": name, "ms": None, "over torch's choice": f"not here: {reason}"})


def _under(backend: SDPBackend, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with sdpa_kernel(backend):
            call()

    return run
