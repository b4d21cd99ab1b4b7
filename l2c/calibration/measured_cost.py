"""MACs of a module that is not ours: counted while it runs, by torch's own counter, layer by layer."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from l2c.backbones.forwards import eagerly, replaced
from l2c.backbones.wrap import WrappedLayer, WrappedModule
from l2c.calibration.whole_blocks import sentence, whole_blocks

ENOUGH = 0.8  # of the MACs of an evaluation
FEW = "the %d layers of %s hold %.0f %% of the MACs of an evaluation; no graph of them saves more"
log = logging.getLogger(__name__)
_said: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@torch.no_grad()
def measure_macs(backbone: WrappedModule) -> tuple[tuple[int, ...], int]:
    """Return MACs of one evaluation for one sample: of each layer, and of everything else.

    Counted are matrix products and convolutions, attention's two included; the counter's FLOPs are twice that.

    Raises:
        ValueError: if the shape of an input is unknown.

    """
    weight = next(backbone.parameters())
    x = torch.zeros((1, *backbone.input_shape), device=weight.device, dtype=backbone.dtype)
    y = torch.zeros(1, dtype=torch.long, device=weight.device) if backbone.labels is not None else None
    t = torch.full((1,), backbone.usual_time, device=weight.device)
    held, rest = macs_of(backbone.layers, lambda: backbone(x, t, y))
    if type(backbone) is WrappedModule:  # its layers are named by a user
        with eagerly(), whole_blocks(backbone.layers) as blocks:  # a run of its own: a forward may be tried twice
            backbone(x, t, y)
        if blocks:
            log.warning(sentence(blocks, len(backbone.layers), backbone.conventions.name))
    share = sum(held) / max(1, sum(held) + rest)
    if held and share < ENOUGH:
        said = FEW % (len(held), backbone.conventions.name, 100 * share)
        if _said.get(backbone.module) != said:  # of one network once, however often it is measured
            log.warning(said)
            _said[backbone.module] = said
    return held, rest


@torch.no_grad()
def covered_share(layers: Sequence[WrappedLayer], run: Callable[[], Any]) -> float:
    """Return the share of a forward's MACs that layers hold.

    Args:
        layers: layers of a model.
        run: calls the model once.

    """
    held, rest = macs_of(layers, run)
    return sum(held) / max(1, sum(held) + rest)


def macs_of(layers: Sequence[WrappedLayer], run: Callable[[], Any]) -> tuple[tuple[int, ...], int]:
    """Return MACs of each layer and of everything else, in one forward that `run` makes."""
    counts = [0] * len(layers)
    counted: dict[nn.Module, list[int | None]] = {}  # for each module, the layer of each of its calls
    for index, layer in enumerate(layers):
        for module, call in ((layer.module, layer.call), *((silent, 0) for silent in layer.silent)):
            calls = counted.setdefault(module, [])
            calls.extend([None] * (call + 1 - len(calls)))
            calls[call] = index
    # The plain product is the one kernel that every device's counter knows.
    with sdpa_kernel(SDPBackend.MATH), _plain_attention(), FlopCounterMode(display=False) as counter, eagerly():
        metered = {module: partial(_metered, counter, counts, iter(calls)) for module, calls in counted.items()}
        with replaced(metered):
            run()
        total = counter.get_total_flops() // 2
    return tuple(counts), total - sum(counts)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention with masks of blocks, which the counter does not know, be whole attention in this thread.

    What layers return is not read while MACs are counted. Blocks that a mask leaves out are counted too.
    """
    thread, own = threading.get_ident(), cast("Callable[..., Any]", flex_attention.flex_attention)

    def whole(query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **given: Any) -> Any:
        if threading.get_ident() != thread:
            return own(query, key, value, *args, enable_gqa=enable_gqa, **given)
        return scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa)

    flex_attention.flex_attention = whole
    try:
        yield
    finally:
        flex_attention.flex_attention = own


def _metered(
    counter: FlopCounterMode,
    counts: list[int],
    turns: Iterator[int | None],
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a forward, and count its MACs as those of the layer whose turn it is."""
    before = counter.get_total_flops()
    output = forward(*args, **kwargs)
    index = next(turns, None)
    if index is not None:
        counts[index] += (counter.get_total_flops() - before) // 2
    return output
