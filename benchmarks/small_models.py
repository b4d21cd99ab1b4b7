"""What is left of the time of a small model beside what is left of its MACs, by processor time.

python benchmarks/small_models.py --model dit_digits --images 64
"""

from __future__ import annotations

import argparse
import time

import torch

from l2c.backbones.presets import load_backbone, model_preset
from l2c.policies.context import PolicyContext
from l2c.policies.methods.random_layers import random_layers
from l2c.report.machine import machine
from l2c.report.table import markdown_table
from l2c.sampling.sampler import Sampler
from l2c.speed.latency import alternate


def main() -> None:
    """Draw random layers at each budget, time them in turn on one thread, print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="dit_digits", help="a preset whose weights are available")
    options.add_argument("--images", type=int, default=64, help="at a time")
    options.add_argument("--budgets", type=float, nargs="+", default=[0.76, 0.64, 0.4], help="shares of the MACs")
    options.add_argument("--repetitions", type=int, default=9, help="rounds, in which the variants alternate")
    given = options.parse_args()
    torch.set_num_threads(1)
    preset = model_preset(given.model).sampling
    scale, count = preset.cfg_scale, preset.num_evaluations
    backbone = load_backbone(given.model)
    plain = Sampler(backbone, solver=preset.solver, num_evaluations=count, cfg_scale=scale)
    context = PolicyContext.of(plain)
    like = context.blank.replace(routed=context.all_but_first)
    samplers, shares = {"uncached": plain}, {"uncached": 1.0}
    for budget in given.budgets:
        graph = random_layers(like, context.cost, seed=0, evaluations_worth=budget * count)
        name = f"{budget:g}"
        samplers[name], shares[name] = Sampler(backbone, graph=graph), context.cost.evaluations_worth(graph) / count
    labels = torch.arange(given.images) % backbone.num_labels if backbone.num_labels else None
    noise = torch.randn(given.images, *backbone.input_shape, generator=torch.Generator().manual_seed(0))
    calls = {name: (lambda s=sampler: s.sample(labels, noise=noise)) for name, sampler in samplers.items()}
    times = alternate(calls, repetitions=given.repetitions, clock=time.process_time)
    rows = [("budget", "CPU ms", "MACs", "time", "quartiles", "time - MACs")]
    for name, latency in times.items():
        middle, low, high = times["uncached"].ratio(latency)
        shown = (f"{1e3 * latency.seconds:.1f}", f"{shares[name]:.3f}", f"{middle:.3f}", f"{low:.3f} .. {high:.3f}")
        rows.append((name, *shown, f"{middle - shares[name]:+.3f}"))
    print(f"{given.model}, {given.images} images\n\n{markdown_table(rows)}\n\n{machine(torch.device('cpu'))}")


if __name__ == "__main__":
    main()
