"""Time a cache graph beside the uncached sampler and, on request, the published scheme.

l2c benchmark model=dit_xl2 computed=[0,0,4,8,26,53,55,55,55,56] baseline=published
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.backbones.dit import DiT
from l2c.backbones.presets import RANDOM, load_backbone
from l2c.backbones.whole_output import under_layers
from l2c.calibration.cost import count_macs
from l2c.commands.frame import entry as cli
from l2c.commands.frame.sampler import preset_of
from l2c.commands.frame.table import this_command_line
from l2c.graph.binding import scale_in_use
from l2c.graph.cache_graph import CacheGraph
from l2c.io.seeds import Stream
from l2c.policies.context import PolicyContext
from l2c.policies.methods.random_layers import counted_layers
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler
from l2c.speed.bench import PUBLISHED, Bench, Setting, Speed
from l2c.speed.latency import alternate
from l2c.speed.report import speed_table, write_speed_report


@cli.entry("benchmark")
def main(cfg: DictConfig) -> None:
    """Build, time, report."""
    graph = CacheGraph.load(cfg.graph) if cfg.graph is not None else None
    preset = preset_of(cfg, graph, otherwise="dit_xl2")
    device = cli.device(cfg.device)
    checkpoint = RANDOM if cfg.checkpoint is None and graph is None else cfg.checkpoint
    backbone = load_backbone(preset, checkpoint=checkpoint)
    if checkpoint == RANDOM:
        _enliven(backbone)
        graph = None if graph is None else graph.replace(fingerprint=None)  # its speed is that of any weights
    backbone.to(device)
    of_graph = None if graph is None else graph.cfg_scale
    scale = scale_in_use(cfg.cfg_scale, of_graph, preset.sampling.cfg_scale)
    if graph is None:
        graph = _random_graph(cfg, backbone, preset, scale)
    cost = count_macs(backbone)
    options = {"cache_dtype": cfg.cache_dtype, "cache_device": cfg.cache_device}
    notes = [_preparation(backbone, graph, scale), _python_overhead(graph)]
    bench = Bench(backbone, graph, cost, cfg_scale=scale, options=options)
    by_evaluation = cfg.by_evaluation if cfg.by_evaluation is not None else device.type == "cpu"
    speeds: list[Speed] = []
    for batch_size in cfg.batch_sizes:
        settings = [
            Setting(batch_size, precision, matmul, mode)
            for precision in cfg.precision
            for matmul in cfg.matmul
            for mode in cfg.mode
        ]
        if cfg.baseline:  # as published: 32 bits, on a GPU with TF32
            exact = "tf32" if device.type == "cuda" else "fp32"
            settings = [Setting(batch_size, exact, matmul, PUBLISHED) for matmul in cfg.matmul] + settings
        speeds += bench.run(settings, repetitions=cfg.repetitions, by_evaluation=by_evaluation)
        report = write_speed_report(cli.run_folder(), graph, cost, speeds, command=this_command_line(), notes=notes)
    print(f"MACs allow {cost.speed_up(graph):.4f} x\n\n{speed_table(speeds)}\n")
    print("\n".join(notes))
    print(f"\nreport: {report}")


def _enliven(backbone: Backbone) -> None:
    """Give parameters that begin as zero (gates, the output) random values, so that images come out."""
    stream = Stream("weights instead of zeros", 0)
    for parameter in backbone.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.data.copy_(0.02 * stream(tuple(parameter.shape)))


def _random_graph(cfg: DictConfig, backbone: Backbone, preset: Any, scale: float | None) -> CacheGraph:
    """Return a graph with as many layers computed as the config says."""
    sampling = preset.sampling
    sampler = Sampler(backbone, solver=sampling.solver, num_evaluations=sampling.num_evaluations, cfg_scale=scale)
    context = PolicyContext.of(sampler)
    counts = cfg.computed or [round(cfg.keep * backbone.num_layers)] * len(context.alternate)
    return counted_layers(context.blank, context.alternate, list(counts), seed=0)


def _preparation(backbone: Backbone, graph: CacheGraph, scale: float | None) -> str:
    """Return a sentence on the time to load a graph and make a sampler of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cache_graph.json"
        graph.save(path)
        start = time.perf_counter()
        Sampler(backbone, graph=CacheGraph.load(path), cfg_scale=scale, any_weights=graph.fingerprint is None)
        seconds = time.perf_counter() - start
    return f"Loading the graph and preparing the sampler took {1e3 * seconds:.1f} ms."


def _python_overhead(graph: CacheGraph) -> str:
    """Return a sentence on the executor's own time: an evaluation of blocks that do nothing, in a narrow network."""
    depth = max(1, graph.num_layers // 2)
    net = under_layers(
        DiT(input_size=4, patch_size=2, hidden_size=16, depth=depth, num_heads=1, num_classes=2).eval(), graph.layers
    )
    sampler = Sampler(net, solver="ddim", num_evaluations=graph.num_evaluations, cfg_scale=4.0)
    binding = binding_of(net, sampler.solver, weights_bound=False)
    hollow = graph.replace(**binding.fields, correction=None)
    sampler = Sampler(net, graph=hollow, cfg_scale=4.0)
    blank = torch.zeros(2, 4, 16)
    sampler.blocks_by(lambda block, *inputs: (inputs[0], (blank, blank)))
    noise: Tensor = torch.zeros(1, 4, 4, 4)
    seconds = alternate({"hollow": lambda: sampler.sample([0], noise=noise)}, repetitions=21)["hollow"].seconds
    each = 1e3 * seconds / graph.num_evaluations
    return f"Python, solver and guidance take {each:.2f} ms per evaluation outside the {graph.num_layers} layers."


if __name__ == "__main__":
    main()
