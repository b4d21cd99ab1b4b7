"""Time one evaluation of DiT-XL/2 with guidance (2 x 256 tokens, random weights) in other precisions and compiled.

python benchmarks/precisions.py [--rounds 7] [--threads 1]

Variants run in turn; processor time over that of 32-bit floats, eager, as median and quartiles of the rounds, and the
relative error of the output. int8 is measured where torchao is installed.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from l2c.backbones.dit import DiT
from l2c.backbones.presets import build_backbone
from l2c.speed.latency import alternate


def network() -> DiT:
    """Return DiT-XL/2 with random weights, none of them zero."""
    torch.manual_seed(0)
    backbone = build_backbone("dit_xl2").eval().requires_grad_(False)
    assert isinstance(backbone, DiT)
    for parameter in backbone.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return backbone


def compiled_blocks(backbone: DiT) -> DiT:
    """Compile each block; they are alike, so that one compilation serves all."""
    for block in backbone.blocks:
        block.compile()
    return backbone


def variants(backbone: DiT) -> Iterator[tuple[str, Callable[..., Tensor], torch.dtype]]:
    """Yield a name, a network and the type of its inputs."""
    half = copy.deepcopy(backbone).bfloat16()
    yield "fp32, eager", backbone, torch.float32
    yield "fp32, blocks compiled", compiled_blocks(copy.deepcopy(backbone)), torch.float32
    yield "fp32, the network compiled whole", torch.compile(backbone), torch.float32
    yield "bf16, eager", half, torch.bfloat16
    yield "bf16, blocks compiled", compiled_blocks(copy.deepcopy(half)), torch.bfloat16
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        print("torchao is not installed: int8 is left out")
        return
    for name, source, dtype in (("fp32", backbone, torch.float32), ("bf16", half, torch.bfloat16)):
        packed = copy.deepcopy(source)
        quantize_(packed.blocks, Int8DynamicActivationInt8WeightConfig())
        yield f"int8 of {name}, blocks compiled", compiled_blocks(packed), dtype


def main() -> None:
    """Run each variant once, then all in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    if given.rounds < 2 or given.threads < 1:
        options.error("--rounds must be 2 or more and --threads 1 or more")
    torch.set_num_threads(given.threads)
    with torch.no_grad():
        measure(network(), given.rounds)


def measure(backbone: DiT, rounds: int) -> None:
    """Print a line for each variant."""
    x, t, y = torch.randn(2, *backbone.input_shape), torch.full((2,), 500.0), torch.tensor([1, 2])
    calls: dict[str, Callable[[], Tensor]] = {}
    expected = backbone(x, t, y)
    for name, made, dtype in variants(backbone):
        calls[name] = partial(made, x.to(dtype), t, y)
        start = time.perf_counter()
        error = (calls[name]().float() - expected).norm() / expected.norm()
        print(f"{name}: first call {time.perf_counter() - start:.1f} s, error {float(error):.2g}", flush=True)
    times = alternate(calls, repetitions=rounds, progress=True, clock=time.process_time)
    for name, latency in times.items():
        middle, low, high = times["fp32, eager"].ratio(latency)
        print(f"{name}: {middle:.3f} ({low:.3f} .. {high:.3f}), {latency.seconds:.2f} s")


if __name__ == "__main__":
    main()
