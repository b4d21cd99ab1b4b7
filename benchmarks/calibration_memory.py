"""Peak memory and time of calibrating one trajectory, beside sampling it, with random weights in 32 bits (Linux).

python benchmarks/calibration_memory.py --model dit_xl2 --evaluations 20 --probes 1 --cfg-scale 4 --ways gradient
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import l2c
from l2c.backbones.backbone import Backbone
from l2c.calibration.forward_responses import measure_forward
from l2c.calibration.grid import oldest_age
from l2c.calibration.responses import measure_both_ways
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.sampler import Sampler, seeded_noise

WAYS = ("sampling", "gradient", "recomputed", "forward", "output")  # the last: forward, of the whole output
SMALL = "a DiT of 12 blocks, width 384, 256 tokens"
PEAK, NOW = "VmHWM", "VmRSS"


def main() -> None:
    """Print a line per way, each measured in a process of its own."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="small", help=f"a preset, or small: {SMALL}")
    options.add_argument("--evaluations", type=int, default=10)
    options.add_argument("--probes", type=int, default=2, help="backward passes, or directions of the forward ways")
    options.add_argument("--between", type=int, default=0)
    options.add_argument("--cfg-scale", type=float)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    given = options.parse_args()
    if len(given.ways) == 1:
        mebibytes, seconds = measured(given.ways[0], given)
        print(f"{given.ways[0]:10s} {mebibytes:8.0f} MiB above the weights, {seconds:8.1f} CPU seconds", flush=True)
        return
    rest = [word for word in sys.argv[1:] if word not in WAYS and word != "--ways"]
    for way in given.ways:
        subprocess.run([sys.executable, __file__, *rest, "--ways", way], check=True)


def measured(way: str, given: argparse.Namespace) -> tuple[float, float]:
    """Return the peak memory above that with the weights loaded in MiB, and CPU seconds."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    small = l2c.DiT(input_size=32, patch_size=2, in_channels=4, hidden_size=384, depth=12, num_heads=6)
    backbone: Backbone = small.eval().requires_grad_(False)
    if given.model != "small":
        backbone = l2c.load_backbone(given.model, checkpoint="random")
    backbone.recompute_activations = way == "recomputed"
    network = l2c.WholeOutput(backbone) if way == "output" else backbone
    sampler = Sampler(network, solver="ddim", num_evaluations=given.evaluations, cfg_scale=given.cfg_scale)
    run = run_of(way, sampler, given)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = status(NOW), time.process_time()
    run()
    return status(PEAK) - before, time.process_time() - start


def run_of(way: str, sampler: Sampler, given: argparse.Namespace) -> Callable[[], object]:
    """Return what one trajectory of a way does."""
    labels, noise = labels_in_turn(sampler.backbone.num_labels, 1), seeded_noise(sampler.backbone.input_shape, 7, 1)
    if way == "sampling":
        return lambda: sampler.sample(labels, noise=noise)
    how = {"num_probes": given.probes, "max_age": oldest_age(sampler.solver.num_evaluations)}
    if way in ("forward", "output"):
        return lambda: measure_forward(sampler, labels, noise, **how)
    return lambda: measure_both_ways(sampler, labels, noise, between=given.between, **how)


def status(name: str) -> float:
    """Return a figure of this process's memory in MiB."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
