"""Blocks and kinds of layers, read from their names: `blocks.3.attn` is the kind `attn` of the block `blocks.3`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l2c.graph.given import each
from l2c.io.names import chosen

WHOLE_OUTPUT = "output"  # the layer of a graph that reuses what the whole network returns: its one, or its last
LAYER_KINDS = ("layer", "block", "resnet", WHOLE_OUTPUT)  # of a diffusers model, see `find_layers`
KINDS = {"attn": ("attn",), "mlp": ("mlp", "ff", "proj_out")}  # as ours and diffusers' layers are called


def kinds_asked(layers: Any) -> tuple[str, ...] | None:
    """Return kinds of layers, of which one may stand without brackets; None = the usual ones.

    Raises:
        ValueError: if there are none, one is unknown, or `output` stands beside others.

    """
    if layers is None:
        return None
    asked = tuple(
        chosen("kind of layers", kind, LAYER_KINDS)
        for kind in ((layers,) if isinstance(layers, str) else each("layers", layers))
    )
    if not asked:
        raise ValueError(
            f"layers is empty; give one of {', '.join(LAYER_KINDS)} at least, or None for the usual ones"
        )
    if WHOLE_OUTPUT in asked and len(set(asked)) > 1:
        raise ValueError(f"layers of kind {WHOLE_OUTPUT} stand alone, got {', '.join(asked)}; say [{WHOLE_OUTPUT}]")
    return tuple(dict.fromkeys(asked))


def ends_in_output(layers: Sequence[str]) -> bool:
    """Return whether the last one of several layers is the whole output: where it is reused, no other one runs."""
    return len(layers) > 1 and layers[-1] == WHOLE_OUTPUT


def own_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the layers without the whole output, which is no part of the network."""
    return tuple(layers[:-1] if layers and layers[-1] == WHOLE_OUTPUT else layers)


def block_of(name: str) -> str:
    """Return the block that a layer belongs to; a layer that is a whole block, `blocks.3` or `tail`, is its own."""
    head, _, tail = name.rpartition(".")
    return name if tail.isdigit() or not head else head


def kind_of(name: str) -> str:
    """Return the kind of a layer: the last part of its name that is no number."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


def layers_of(part: str, names: Sequence[str]) -> set[int]:
    """Return the indices of the layers of a part, `attn` or `mlp`, or of `all`.

    Raises:
        ValueError: if there is no such part.

    """
    chosen("part of the layers", part, (*KINDS, "all"))
    return {i for i, name in enumerate(names) if part == "all" or kind_of(name).startswith(KINDS[part])}


def _grouped(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return tuple(map(tuple, groups.values()))


def blocks(layers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of the layers of each block, in the order of the layers."""
    return _grouped([block_of(name) for name in layers])


def kinds(layers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of the layers of each kind."""
    return _grouped([kind_of(name) for name in layers])
