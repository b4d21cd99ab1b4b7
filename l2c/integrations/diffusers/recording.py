"""One forward of a model, looked at: how often each of its modules runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def calls_of(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Return how often each module runs in one forward, by its name; modules that do not run are left out.

    Args:
        model: the model.
        run: calls it once.

    """
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, Any], None]:
        def add(module: nn.Module, args: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return add

    hooks = [module.register_forward_pre_hook(count(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return counts
