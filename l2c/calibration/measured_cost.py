"""MACs of a module that is not ours: counted while it runs, by torch's own counter, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from l2c.backbones.wrap import WrappedModule


@torch.no_grad()
def measure_macs(backbone: WrappedModule) -> tuple[tuple[int, ...], int]:
    """Return MACs of one evaluation for one sample: of each layer, and of everything else.

    Counted are matrix products and convolutions, attention's two included; the counter's FLOPs are twice that.

    Raises:
        ValueError: the shape of an input is not known.

    """
    weight = next(backbone.parameters())
    x = torch.zeros((1, *backbone.input_shape), device=weight.device, dtype=weight.dtype)
    y = torch.zeros(1, dtype=torch.long, device=weight.device) if backbone.labels is not None else None
    layers = [0] * backbone.num_layers
    # The plain product is the one kernel that every device's counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for index, layer in enumerate(backbone.layers):
            for module in (layer.module, *layer.silent):
                stack.enter_context(_metered(module, counter, layers, index))
        backbone(x, torch.ones(1, device=weight.device), y)
        total = counter.get_total_flops() // 2
    return tuple(layers), total - sum(layers)


@contextmanager
def _metered(module: nn.Module, counter: FlopCounterMode, layers: list[int], index: int):  # type: ignore[no-untyped-def]
    original: Callable[..., Any] = module.forward
    own = module.__dict__.get("forward")

    def metered(*args: Any, **kwargs: Any) -> Any:
        before = counter.get_total_flops()
        output = original(*args, **kwargs)
        layers[index] += (counter.get_total_flops() - before) // 2
        return output

    module.__dict__["forward"] = metered
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
