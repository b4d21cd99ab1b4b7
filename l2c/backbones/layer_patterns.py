"""Layers found by patterns of module names, for modules whose author says which they are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from l2c.graph.given import each, text
from l2c.io.names import quoted


def match_layers(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the modules that patterns match, in the module's own order.

    A pattern has as many parts as the name, separated by dots; `*` stands for any one part or a piece of it.

    Raises:
        ValueError: if a pattern matches nothing, or one layer lies inside another.

    """
    patterns = [text("a pattern of layers", pattern) for pattern in each("patterns of layers", patterns)]
    names = [name for name, _ in module.named_modules() if name]
    found = {pattern: [name for name in names if _matches(name, pattern)] for pattern in patterns}
    for pattern, matched in found.items():
        if not matched:
            some = dict.fromkeys(".".join("*" if p.isdigit() else p for p in name.split(".")) for name in names)
            raise ValueError(
                f"the pattern {quoted(pattern)} matches nothing in {type(module).__name__}; its modules are like "
                f"{', '.join(list(some)[:12])}"
            )
    chosen = {name for matched in found.values() for name in matched}
    for name in chosen:
        inside = next((other for other in chosen if name.startswith(f"{other}.")), None)
        if inside is not None:
            raise ValueError(f"layer {name} lies inside layer {inside}; match one of them")
    if not chosen:
        raise ValueError("no patterns given; say layers=['blocks.*.attn', 'blocks.*.mlp'] or the like")
    return tuple(name for name in names if name in chosen)


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
