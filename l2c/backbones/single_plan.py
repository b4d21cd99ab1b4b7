"""The pass of modules whose blocks are single layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from l2c.backbones.layer_cache import Fresh, LayerCache, LayerOutput, LayerPlan


def ran_twice(name: str) -> str:
    """Return the sentence on a layer that ran twice in one evaluation."""
    return (
        f"layer {name} ran twice in one evaluation, so that no output is its own; "
        "leave it out of the patterns given to l2c.wrap"
    )


class SinglePlan(LayerPlan):
    """A `LayerPlan` of blocks of one layer each."""

    def __init__(self, layer_names: Sequence[str], *decisions: Any) -> None:
        super().__init__(layer_names, *decisions)
        self._names = layer_names
        self._ran: set[int] = set()

    def block(self, index: int) -> tuple[tuple[Fresh, Fresh], tuple[LayerOutput, LayerOutput]]:
        """Return `(fresh, cached)` of layer `index`, each with an idle second place."""
        return (self._fresh[index], True), (self._cached[index], None)

    def run(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        """Run layer `index`, hold on to its output if it is to be kept; see `Pass.run`."""
        if index in self._ran:
            raise ValueError(ran_twice(self._names[index]))
        self._ran.add(index)
        output, outputs = self._outputs(block, *inputs, *self.block(index))
        if self._keep[index]:
            self._kept[index] = outputs[0]
        return output

    @property
    def new_cache(self) -> LayerCache:
        """The outputs that later evaluations may reuse, None where nothing was to be kept.

        Raises:
            ValueError: if a layer did not run.

        """
        idle = [name for index, name in enumerate(self._names) if index not in self._ran]
        if idle:
            raise ValueError(
                f"layer {idle[0]} did not run in this evaluation; leave it out of the patterns given to l2c.wrap"
            )
        return super().new_cache
