"""Whole trajectories, uncached and cached, in every way to run them, beside the published scheme."""

from __future__ import annotations

import warnings

from benchmarks.gpu.networks import Network, network
from benchmarks.gpu.task import Task, told
from l2c.calibration.cost import Cost, count_macs
from l2c.speed.bench import PUBLISHED, Bench, Setting, Speed

CASES = ((20, 8), (20, 1), (50, 8), (50, 1))  # (evaluations, images)
# (precision, mode); 32-bit products of the published code are in TF32 on a GPU
UNCOMPILED = (("tf32", PUBLISHED), ("bf16", PUBLISHED), ("bf16", "eager"), ("bf16", "captured"))
COMPILED = (("bf16", "captured"), ("bf16", "compiled"), ("bf16", "compiled+captured"))
TINY_CASES = ((6, 2),)


def measure(task: Task, kind: str) -> None:
    """Time a network of a kind: first what needs no compiler, then compiled blocks beside what was best before."""
    net = network(task, kind)
    cost = count_macs(net.backbone)
    cases = TINY_CASES if task.tiny else CASES
    benches = {e: _bench(task, net, cost, e) for e in dict.fromkeys(e for e, _ in cases)}
    for ways in (UNCOMPILED, COMPILED):
        for num_evaluations, batch_size in cases:
            if not task.in_time:
                return
            bench = benches[num_evaluations]
            settings = [Setting(batch_size, precision, "default", mode) for precision, mode in ways]
            if ways is UNCOMPILED and (num_evaluations, batch_size) == (20, 1):
                settings.insert(1, Setting(batch_size, "fp32", "default", PUBLISHED))
            rounds = max(2, task.rounds if num_evaluations <= 20 else task.rounds - 2)
            with warnings.catch_warnings():
                if task.device.type != "cuda":
                    warnings.filterwarnings("ignore", message=".*captured as a CUDA graph")
                speeds = bench.run(settings, repetitions=rounds, by_evaluation=False)
            for setting, speed in zip(settings, speeds, strict=True):
                _send(task, bench, setting, speed, speeds[0])


def _bench(task: Task, net: Network, cost: Cost, num_evaluations: int) -> Bench:
    graph = net.graph(num_evaluations, task.router)
    return Bench(net.backbone, graph, cost, cfg_scale=net.cfg_scale, backend="eager" if task.tiny else "inductor")


def _send(task: Task, bench: Bench, asked: Setting, speed: Speed, first: Speed) -> None:
    setting = speed.setting
    name = setting.mode if setting.mode == asked.mode else f"{setting.mode} ({asked.mode} failed)"
    allowed = bench.cost.speed_up(bench.graph)
    task.send(
        f"{bench.graph.num_evaluations} evaluations, the MACs allow {allowed:.4f} x",
        {
            "images": setting.batch_size,
            "precision": setting.precision,
            "run": name,
            "uncached s": speed.uncached,
            "cached s": speed.cached,
            "speed-up": f"{speed.speed_up:.3f} ± {speed.spread:.3f}",
            "efficiency": round(speed.efficiency, 4),
            "images/s": speed.images_per_second,
            "first's cached time over this": told(speed.faster_than(first)),
            "cache MB": speed.cache_bytes / 1e6,
            "predicted MB": speed.predicted_bytes / 1e6,
            "device MB": None if speed.device_bytes is None else speed.device_bytes / 1e6,
            "error": float(f"{speed.error:.2e}"),
        },
    )
