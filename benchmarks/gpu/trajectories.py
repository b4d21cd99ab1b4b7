"""Whole trajectories, uncached and cached, in every way to run them, beside the published scheme."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from benchmarks.gpu.networks import Network, network
from benchmarks.gpu.task import Task, told
from l2c.calibration.cost import Cost, count_macs
from l2c.speed.bench import PUBLISHED, Bench, Setting, Speed

CASES = ((20, 8), (20, 1), (50, 8), (50, 1))  # (evaluations, images)
# (precision, mode). The published code runs in 32 bits, its products on a GPU in TF32; one case is timed in fp32 too.
# Every group begins with it, so that each row has its ratio.
PUBLISHED_WAYS = (("tf32", PUBLISHED), ("bf16", PUBLISHED))
UNCOMPILED = (*PUBLISHED_WAYS, ("bf16", "eager"), ("bf16", "captured"))
COMPILED = (*PUBLISHED_WAYS, ("bf16", "captured"), ("bf16", "compiled"), ("bf16", "compiled+captured"))
TINY_CASES = ((6, 2),)


def measure(task: Task, kind: str) -> None:
    """Time a network of a kind: first what needs no compiler, then compiled blocks beside what was best before."""
    net = network(task, kind)
    cost = count_macs(net.backbone)
    cases = TINY_CASES if task.tiny else CASES
    benches = {e: _bench(task, net, cost, e) for e in dict.fromkeys(e for e, _ in cases)}
    for ways in (UNCOMPILED, COMPILED):
        for num_evaluations, batch_size in cases:
            task.begin()
            bench = benches[num_evaluations]
            in_full = ways is UNCOMPILED and (task.tiny or (num_evaluations, batch_size) == (20, 1))
            settings = _settings(task, (*ways, ("fp32", PUBLISHED)) if in_full else ways, batch_size)
            rounds = max(2, task.rounds if num_evaluations <= 20 else task.rounds - 2)
            with warnings.catch_warnings():
                if task.device.type != "cuda":
                    warnings.filterwarnings("ignore", message=".*captured as a CUDA graph")
                speeds = bench.run(settings, repetitions=rounds, by_evaluation=False)
            for setting, speed in zip(settings, speeds, strict=True):
                _send(task, bench, setting, speed, speeds)


def _settings(task: Task, ways: Sequence[tuple[str, str]], batch_size: int) -> list[Setting]:
    """Return ways to run in what the device has of their precisions, each once."""
    here = {"bf16": task.precision, "tf32": task.published_precision}
    settings = (Setting(batch_size, here.get(precision, precision), "default", mode) for precision, mode in ways)
    return list(dict.fromkeys(settings))


def _bench(task: Task, net: Network, cost: Cost, num_evaluations: int) -> Bench:
    graph = net.graph(num_evaluations, task.router)
    return Bench(net.backbone, graph, cost, cfg_scale=net.cfg_scale, backend="eager" if task.tiny else "inductor")


def _send(task: Task, bench: Bench, asked: Setting, speed: Speed, group: list[Speed]) -> None:
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
            **{
                f"{other.setting.precision} published, cached / this": told(speed.faster_than(other))
                for other in group
                if other.setting.mode == PUBLISHED
            },
            "cache MB": speed.cache_bytes / 1e6,
            "predicted MB": speed.predicted_bytes / 1e6,
            "device MB": None if speed.device_bytes is None else speed.device_bytes / 1e6,
            "error": float(f"{speed.error:.2e}"),
            "why not as asked": speed.fallback,
        },
    )
