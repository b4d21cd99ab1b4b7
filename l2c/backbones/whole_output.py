"""A backbone whose one layer is its whole output: an evaluation that reuses costs nothing but the predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from l2c.backbones.backbone import Backbone
from l2c.backbones.layer_cache import Fresh, LayerCache, LayerOutput, Row, mix
from l2c.backbones.parts import in_order
from l2c.graph.layer_names import WHOLE_OUTPUT

_OF_PIPELINES = ("own_solver", "fewer_steps", "origin")


class WholeOutput(Backbone):
    """A backbone with one layer, `output`: what the network returns, (N, C, H, W).

    A reused evaluation runs no part of the network. Kept outputs have the size of a latent, so that memory hardly
    grows. The weights, their keys and their fingerprint are the network's.

    Args:
        network: the backbone itself; it stays usable, and its layers stay its own.

    Raises:
        ValueError: if it is no backbone, or its one layer is its whole output already.

    """

    layers_per_block = 1

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        if not isinstance(network, Backbone) or isinstance(network, WholeOutput):
            raise ValueError(
                f"a whole output is that of a backbone with layers (l2c.load_backbone, l2c.wrap), got "
                f"{type(network).__name__}"
            )
        self.network = network
        self.whole = _Whole(network)
        self.layer_names = (WHOLE_OUTPUT,)
        self.conventions = network.conventions
        self.num_embedded_labels = network.num_embedded_labels
        self.condition_size = network.condition_size
        self.known_fingerprint = network.known_fingerprint
        for name in _OF_PIPELINES:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(C, H, W) of one input."""
        return self.network.input_shape

    @property
    def kept_numbers(self) -> int | None:
        """Numbers of one output, C x H x W or, with variances, twice as many; None where not known."""
        if self.network.layer_shape is None:  # a network that is not ours
            return None
        channels, *size = self.input_shape
        return getattr(self.network, "out_channels", channels) * math.prod(size)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's own state dict, with its own keys."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the network's own state dict."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)

    def condition(self, t: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        """Return what the network needs of t (N,) and y (N,); see `Backbone.condition`."""
        return self.network.condition(t, y)

    def parts(self, y: Tensor | None) -> list[Tensor] | None:
        """Return groups of batch indices that can share one forward; see `Backbone.parts`."""
        return self.network.parts(y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict; see `Backbone.forward`."""
        return self.network(x, t, y)

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        row: Row,
        cache: Sequence[LayerOutput] | None = None,
        keep: Sequence[bool] | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """Predict, or reuse the output; see `Backbone.forward_cached`."""
        parts = self.parts(y)
        if parts is None or y is None:
            return super().forward_cached(x, t, y, row, cache, keep)
        kept = None if cache is None else cache[0]
        outputs = [
            super(WholeOutput, self).forward_cached(
                x[rows], t[rows], y[rows], row, None if kept is None else (kept[rows],), keep
            )
            for rows in parts
        ]
        whole = in_order(parts, [output for output, _ in outputs])
        return whole, tuple(whole if layer is not None else None for layer in outputs[0][1])

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Any) -> Tensor:
        """Predict from x and its `condition`, or reuse; see `Backbone.run`."""
        return layers.run(0, self.whole, x, condition)


class _Whole(nn.Module):
    """The network as one block of a pass."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        x: Tensor,
        condition: tuple[Tensor, ...],
        fresh: tuple[Fresh, Fresh],
        cached: tuple[LayerOutput, LayerOutput],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output, and it again in the place of the two outputs of a block."""
        network = self.network
        row, keep = (True,) * network.num_layers, (False,) * network.num_layers
        output = mix(fresh[0], lambda: network.run(x, condition, network.plan(row, keep=keep)), cached[0])
        return output, (output, output)


def under_layers(backbone: Backbone, layers: Sequence[str]) -> Backbone:
    """Return the backbone that has the layers of a graph: itself, or its whole output as one layer."""
    if tuple(layers) != (WHOLE_OUTPUT,) or tuple(backbone.layer_names) == (WHOLE_OUTPUT,):
        return backbone
    return WholeOutput(backbone)
