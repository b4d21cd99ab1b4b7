"""Steps per second and peak memory of router training, beside the published scheme.

python benchmarks/router_training.py model=dit_b2 batch_size=2
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone
from l2c.commands.frame import entry as cli
from l2c.diffusion import Guidance, make_solver, schedule_of
from l2c.io.atomic import write_json
from l2c.io.seeds import draw_normal
from l2c.report.machine import machine
from l2c.report.table import markdown_table
from l2c.speed.latency import alternate
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import DataPairs, Pair, TrajectoryPairs
from l2c.training.routers.routers import Routers, routed_evaluations

EVALUATIONS = 4  # two routed ones: what a step costs does not depend on how many
PRECISIONS = ("32-true", "bf16-mixed")  # of Lightning's Trainer
SCHEMES = ("published", "frozen", "revisited", "stored")


class Schemes:
    """One backbone on its device, and a training step of each scheme on it, without guidance."""

    def __init__(self, backbone: Backbone, batch_size: int, precision: str = "32-true") -> None:
        self.backbone = backbone
        self.precision = precision
        device = next(backbone.parameters()).device
        self.device = device
        conventions = backbone.conventions
        schedule = schedule_of(conventions)
        name = "ddim" if conventions.guidance == "dit" else "dpm_solver_2s"
        self.solver = make_solver(name, schedule, EVALUATIONS)
        self.routed = routed_evaluations(self.solver.steps)
        self.routers = Routers(self.routed, backbone.num_layers).to(device)
        self.optimizer = torch.optim.AdamW(self.routers.parameters(), lr=1e-3, weight_decay=0.0)
        weights = torch.ones(backbone.num_layers)
        self.objective = LearningToCache(backbone, penalty=1e-6, layer_weights=weights)
        shape = (batch_size, *backbone.input_shape)
        self.x, self.noise = (draw_normal(shape, "batch of a benchmark", i).to(device) for i in range(2))
        self.labels = torch.arange(batch_size, device=device) % max(backbone.num_labels, 1)
        self.y = self.labels if backbone.num_embedded_labels else None
        self.data = DataPairs(backbone, self.solver, self.routed)
        off = Guidance(conventions.guidance)
        self.trajectories = {
            name: TrajectoryPairs(
                backbone, self.solver, self.routed, guidance=off, num_trajectories=1, store_outputs=name == "stored"
            )
            for name in ("revisited", "stored")
        }

    def step(self, scheme: str) -> Callable[[], None]:
        """Return one training step, what is stored at first visits being there already."""
        if scheme == "published":
            return self._published
        if scheme == "frozen":
            return lambda: self._train(lambda: self.data.pair(self.x, self.noise, self.y, self.routed[0]))
        pairs = self.trajectories[scheme]
        with self._autocast():
            pairs.draw((self.noise, self.labels), 0)
        return lambda: self._train(lambda: pairs.draw((self.noise, self.labels), 0))

    def _autocast(self) -> torch.autocast:
        """Return what Lightning runs a training step in."""
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        kind = kinds.get(self.precision)
        return torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None)

    def _train(self, draw: Callable[[], Pair]) -> None:
        with self._autocast():
            loss = self.objective(draw(), self.routers.row(self.routed[0])).loss
        self._update(loss)

    def _update(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _published(self) -> None:
        """Train as Learning-to-Cache's code does: gradients of all weights, through teacher and student."""
        self.backbone.requires_grad_(True)
        with self._autocast():
            x, t, cache = self.data.state(self.x, self.noise, self.y, self.routed[0])
            teacher = self.backbone(x, t, self.y)
            row = self.routers.row(self.routed[0])
            student, _ = self.backbone.forward_cached(x, t, self.y, row, cache)
            loss = (student.float() - teacher.float()).square().mean() + 1e-6 * row.sum()
        self._update(loss)
        self.backbone.requires_grad_(False)


def _resident() -> int:
    """Return the resident set now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def _schemes(cfg: DictConfig, device: torch.device) -> Schemes:
    backbone = load_backbone(cfg.model, checkpoint=cfg.checkpoint).to(device)
    return Schemes(backbone, cfg.batch_size, cfg.precision)


def _peak_of(cfg: DictConfig, device: torch.device, scheme: str) -> int:
    """Return the most memory that a scheme takes, its backbone included, in bytes.

    On a GPU what is allocated there, on a CPU what this process grew by.
    """
    before = _resident()
    step = _schemes(cfg, device).step(scheme)
    for _ in range(2):  # the second with all gradients and moments there
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _measured_peak(scheme: str) -> int:
    """Run this script for one scheme's memory in a process of its own."""
    command = [sys.executable, *sys.argv, f"child={scheme}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"measuring the memory of {scheme} failed: {done.stderr.strip()[-300:]}; try memory=false")
    return int(done.stdout.split()[-1])


@cli.entry("benchmark_training")
def main(cfg: DictConfig) -> None:
    """Alternate the schemes, measure their memory, report."""
    unknown = [name for name in cfg.schemes if name not in SCHEMES]
    if unknown or not cfg.schemes:
        raise ValueError(f"unknown schemes {unknown}; known are {', '.join(SCHEMES)}")
    if cfg.precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {cfg.precision!r}")
    device = cli.device(cfg.device)
    if cfg.cpu_time and device.type != "cpu":
        raise ValueError(f"cpu_time=true counts seconds of the CPU, but the work is on {device}; say device=cpu")
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    if cfg.child is not None:
        print(_peak_of(cfg, device, cfg.child))
        return
    schemes = _schemes(cfg, device)
    clock = time.process_time if cfg.cpu_time else time.perf_counter
    steps = {name: schemes.step(name) for name in cfg.schemes}
    timed = alternate(steps, repetitions=cfg.repetitions, progress=True, clock=clock)
    times = {name: list(latency.times) for name, latency in timed.items()}
    peaks = {name: _measured_peak(name) for name in cfg.schemes} if cfg.memory else {}
    _report(cfg, device, times, peaks)


def _report(cfg: DictConfig, device: torch.device, seconds: dict[str, list[float]], peaks: dict[str, int]) -> None:
    """Print and write medians, each ratio within its round."""
    rows: list[tuple[str, ...]] = [("scheme", "seconds a step", "steps/s", "peak memory", "of the first's")]
    first_seconds, first_peak = next(iter(seconds.values())), next(iter(peaks.values()), 1)
    for name, own in seconds.items():
        faster = statistics.median(a / b for a, b in zip(first_seconds, own, strict=True))
        memory = (f"{peaks[name] / 2**30:.2f} GiB", f"{peaks[name] / first_peak:.3f} x") if peaks else ("-", "-")
        spread = f"{statistics.median(own):.3f} ({min(own):.3f} .. {max(own):.3f})"
        rows.append((name, spread, f"{faster:.2f} x", *memory))
    content = {
        "machine": machine(device),
        "model": cfg.model.name,
        "precision": cfg.precision,
        "batch_size": cfg.batch_size,
        "clock": "cpu" if cfg.cpu_time else "wall",
        "schemes": {name: {"seconds": own, "peak_bytes": peaks.get(name)} for name, own in seconds.items()},
    }
    path = cli.run_folder() / "results.json"
    write_json(path, content)
    print(f"{markdown_table(rows)}\n\n{content['machine']}; wrote {path}")


if __name__ == "__main__":
    main()
