"""Backbones with a layer that is the whole output: an evaluation that reuses it costs nothing but the predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone
from l2c.backbones.layer_cache import Fresh, LayerCache, LayerOutput, Pass, Row, mix
from l2c.backbones.parts import in_order
from l2c.backbones.single_plan import SinglePlan
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output

_OF_PIPELINES = ("own_solver", "fewer_steps", "origin", "turns", "first_model", "scale_at")


class OutputOf(Backbone):
    """A backbone whose whole output can be reused; what is common to both kinds.

    The weights, their keys and their fingerprint are the network's.

    Args:
        network: the backbone itself; it stays usable, and its layers stay its own.

    Raises:
        ValueError: if it is no backbone, or its whole output is a layer already.

    """

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        if not isinstance(network, Backbone) or isinstance(network, OutputOf):
            raise ValueError(
                f"a whole output is that of a backbone with layers (l2c.load_backbone, l2c.wrap), got "
                f"{type(network).__name__}"
            )
        self.network = network
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
    def dtype(self) -> torch.dtype:
        """The type of an input."""
        return self.network.dtype

    @property
    def output_numbers(self) -> int | None:
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


class WholeOutput(OutputOf):
    """A backbone with one layer, `output`: what the network returns, (N, C, H, W).

    A reused evaluation runs no part of the network. Kept outputs have the size of a latent, so that memory hardly
    grows.

    Args:
        network: see `OutputOf`.

    """

    layers_per_block = 1

    def __init__(self, network: Backbone) -> None:
        super().__init__(network)
        self.whole = _Whole(network)
        self.layer_names = (WHOLE_OUTPUT,)

    @property
    def kept_numbers(self) -> int | None:
        """Numbers of one output; see `output_numbers`."""
        return self.output_numbers

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


class LayersAndOutput(OutputOf):
    """A backbone with the network's own layers and, as the last one, its whole output.

    An evaluation that reuses the whole output runs no layer; the others compute and reuse layers as they do without.

    Args:
        network: see `OutputOf`.

    """

    def __init__(self, network: Backbone) -> None:
        super().__init__(network)
        self.layer_names = (*network.layer_names, WHOLE_OUTPUT)
        self.layers_per_block, self.gated = network.layers_per_block, network.gated

    @property
    def kept_numbers(self) -> int | None:
        """Numbers of one output of the network's own layers; see `Backbone.kept_numbers`."""
        return self.network.kept_numbers

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        row: Row,
        cache: Sequence[LayerOutput] | None = None,
        keep: Sequence[bool] | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """Predict, with layers or the output reused; see `Backbone.forward_cached`.

        Where the output is reused, the new cache holds it alone.

        Raises:
            ValueError: if a length is not the number of layers, what is to be reused is not cached, or weights of the
                row are soft.

        """
        if isinstance(row, Tensor) and row.is_floating_point():
            raise ValueError(
                "routers are trained on layers or on the whole output, not on both; take the backbone itself, or "
                "l2c.WholeOutput of it"
            )
        for what, entries in (("row", row), ("cache", cache), ("keep", keep)):
            if entries is not None and len(entries) != self.num_layers:
                raise ValueError(
                    f"{what} has {len(entries)} entries, but this backbone has {self.num_layers} layers; give one "
                    "entry per layer, that of the whole output last"
                )
        decided = SinglePlan((WHOLE_OUTPUT,), row[-1:], None if cache is None else cache[-1:], None)
        (fresh, _), (cached, _) = decided.block(0)
        layers: LayerCache = (None,) * self.network.num_layers
        if fresh:
            own_cache, own_keep = None if cache is None else cache[:-1], None if keep is None else keep[:-1]
            output, layers = self.network.forward_cached(x, t, y, row[:-1], own_cache, own_keep)
        else:
            assert cached is not None, "SinglePlan refuses this with a message"
            output = cached
        return output, (*layers, output if keep is None or keep[-1] else None)

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict from x and its `condition`, or reuse the output; see `Backbone.run`."""
        return layers.whole(x, lambda: self.network.run(x, condition, layers))


def check_one_kind(backbone: Backbone) -> None:
    """Refuse a backbone with layers and whole output, for what measures or chooses one kind at a time.

    Raises:
        ValueError: if it has both.

    """
    if isinstance(backbone, LayersAndOutput):
        raise ValueError(
            "the backbone has layers and its whole output, as a graph of both gave it; take the network itself, "
            "sampler.backbone.network"
        )


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
    """Return the backbone that has the layers of a graph: itself, or one whose whole output is a layer too."""
    if not layers or layers[-1] != WHOLE_OUTPUT or isinstance(backbone, OutputOf):
        return backbone
    return LayersAndOutput(backbone) if ends_in_output(layers) else WholeOutput(backbone)
