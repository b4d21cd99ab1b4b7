"""Multiply-accumulate operations (MACs) of a backbone, layer by layer, counted from its shapes.

Counted are linear layers, convolutions and the two products of attention; norms, activations and biases are not
(the convention of the papers' tables). T tokens of width D, MLP of width M:
attention 4 T D^2 + 2 T^2 D, MLP 2 T D M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from l2c.backbones.backbone import Backbone
from l2c.backbones.dit import DiT
from l2c.backbones.uvit import UViT
from l2c.backbones.whole_output import LayersAndOutput, WholeOutput
from l2c.backbones.wrap import WrappedModule
from l2c.calibration.measured_cost import measure_macs
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output
from l2c.graph.statistics import MACS, SPEED_UP, WORTH

MIDWAY = 0.25  # MACs, which are whole numbers


@dataclass(frozen=True)
class Cost:
    """MACs of one evaluation for one sample (one guidance branch).

    Attributes:
        layers: MACs of each layer, (2L,).
        fixed: MACs of everything that is always computed: embeddings, modulation, skip linears, output.

    """

    layers: tuple[int, ...]
    fixed: int

    @property
    def evaluation(self) -> int:
        """MACs of an evaluation that computes every layer."""
        return self.fixed + sum(self.layers)

    @property
    def removable(self) -> float:
        """What is saved when an evaluation reuses every layer, in evaluations' worth of MACs."""
        return sum(self.layers) / self.evaluation

    def of_row(self, row: Sequence[bool]) -> int:
        """Return the MACs of an evaluation with a row of decisions."""
        return self.fixed + sum(macs for macs, fresh in zip(self.layers, row, strict=True) if fresh)

    def of_graph(self, graph: CacheGraph) -> int:
        """Return the MACs of a whole trajectory."""
        return sum(self.of_evaluations(graph))

    def of_evaluations(self, graph: CacheGraph) -> list[int]:
        """Return the MACs of each evaluation of a graph; one that reuses the whole output costs nothing."""
        if ends_in_output(graph.layers):
            return [self.of_row(layers) if output else 0 for *layers, output in graph.rows]
        cost = self.under(graph)
        return [cost.of_row(row) for row in graph.rows]

    def under(self, graph: CacheGraph) -> Cost:
        """Return the cost by the layers of a graph, which may be the whole output alone."""
        return self.of_output if graph.layers == (WHOLE_OUTPUT,) else self

    @property
    def of_output(self) -> Cost:
        """The cost where the whole output is the one layer: an evaluation that reuses it runs nothing."""
        return Cost((self.evaluation,), 0)

    def evaluations_worth(self, graph: CacheGraph) -> float:
        """Return the trajectory's MACs as a number of full evaluations."""
        return self.of_graph(graph) / self.evaluation

    def to_save(self, worth: float, num_evaluations: int) -> float:
        """Return the MACs that a graph of so many evaluations' worth saves, and a fraction of one.

        With the fraction, a budget midway between two graphs is nearer to the one that costs less.
        """
        return (num_evaluations - worth) * self.evaluation + MIDWAY

    def speed_up(self, graph: CacheGraph) -> float:
        """Return the speed-up that the MACs allow: uncached over cached."""
        return graph.num_evaluations / self.evaluations_worth(graph)

    def measured(self, graph: CacheGraph) -> dict[str, Any]:
        """Return what a graph costs, by the names that its file has for it."""
        return {
            MACS: self.evaluation,
            WORTH: round(self.evaluations_worth(graph), 4),
            SPEED_UP: round(self.speed_up(graph), 4),
        }


def _linears(*modules: nn.Module) -> int:
    """MACs per token of all linear layers in some modules."""
    parts = [part for module in modules for part in module.modules()]
    return sum(part.in_features * part.out_features for part in parts if isinstance(part, nn.Linear))


def _transformer_layers(blocks: Sequence[nn.Module], tokens: int, width: int) -> tuple[int, ...]:
    """MACs of attention and MLP of each block, in order."""
    macs: list[int] = []
    for block in blocks:
        attention = tokens * _linears(block.get_submodule("attn")) + 2 * tokens**2 * width
        macs += [attention, tokens * _linears(block.get_submodule("mlp"))]
    return tuple(macs)


def _convolution(module: nn.Conv2d, outputs: int) -> int:
    """MACs of a convolution with a number of output positions."""
    return outputs * module.weight.numel()


def count_macs(backbone: Backbone) -> Cost:
    """Count the MACs of one evaluation for one sample; of a wrapped module, by running it once.

    Raises:
        TypeError: if the shapes of this kind of backbone are unknown.

    """
    if isinstance(backbone, DiT):
        patches = backbone.x_embedder.num_patches or 0
        layers = _transformer_layers(list(backbone.blocks), patches, backbone.hidden_size)
        modulations = [block.get_submodule("adaLN_modulation") for block in backbone.blocks]
        final = backbone.final_layer
        fixed = (
            _convolution(backbone.x_embedder.proj, patches)
            + _linears(backbone.t_embedder)
            + _linears(*modulations, final.adaLN_modulation)
            + patches * _linears(final.linear)
        )
        return Cost(layers, fixed)
    if isinstance(backbone, UViT):
        patches = backbone.patch_embed.num_patches or 0
        tokens = patches + backbone.num_extra_tokens
        layers = _transformer_layers(backbone.blocks, tokens, backbone.embed_dim)
        fixed = (
            _convolution(backbone.patch_embed.proj, patches)
            + _linears(backbone.time_embed)
            + tokens * _linears(*(block.get_submodule("skip_linear") for block in backbone.out_blocks))
            + tokens * _linears(backbone.decoder_pred)
        )
        if isinstance(backbone.final_layer, nn.Conv2d):
            fixed += _convolution(backbone.final_layer, backbone.input_shape[1] * backbone.input_shape[2])
        return Cost(layers, fixed)
    if isinstance(backbone, WholeOutput):
        return count_macs(backbone.network).of_output
    if isinstance(backbone, LayersAndOutput):
        return count_macs(backbone.network)
    if isinstance(backbone, WrappedModule):
        return Cost(*measure_macs(backbone))
    raise TypeError(
        f"cannot count the MACs of a {type(backbone).__name__}; known are DiT, UViT and wrapped "
        "modules: wrap it with l2c.wrap"
    )
