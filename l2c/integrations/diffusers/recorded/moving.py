"""Which modules of a model run on what moves from evaluation to evaluation, and which on the prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.feeders import filled
from l2c.integrations.diffusers.recorded.steps import calls_of
from l2c.io.tensors import leaves_of


@torch.no_grad()
def moving_calls(model: nn.Module, runs: Sequence[Callable[[], Any]]) -> dict[str, int]:
    """Return how often each module runs in one forward, by its name, of those that are given something that moves.

    Args:
        model: the model.
        runs: each calls it once, with another noisy input at another time, and all else alike.

    """
    names = {module: name for name, module in model.named_modules()}
    given: dict[str, list[Any]] = {}
    counts: list[dict[str, int]] = []
    kept: list[dict[str, list[Any]]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is model:
            given.clear()  # what feeds the model may have run modules of it
        given.setdefault(names[module], []).append(_summary((args, kwargs)))

    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in names]
    try:
        for run in runs:
            given = {}
            counts.append(calls_of(model, run))
            kept.append(given)
    finally:
        for hook in hooks:
            hook.remove()
    first, *others = kept
    return {name: count for name, count in counts[0].items() if any(o.get(name) != first[name] for o in others)}


def moving_runs(call: RecordedCall) -> list[Callable[[], Any]]:
    """Return two runs of the model of a recorded call: as it was, and with another noisy input at another time."""
    model: Any = call.model
    with torch.random.fork_rng():
        x = torch.randn_like(call.x, dtype=torch.float32).to(call.x)
    times = (call.t, 0.75 * call.t if call.t else 0.25)

    def run(x: Tensor, t: float) -> Callable[[], Any]:
        conditions = filled(call.conditions, {})  # models write into dictionaries, which are the recording's
        return lambda: model(**call.arguments(x, torch.tensor([t], device=x.device), conditions))

    return [run(call.x, times[0]), run(x, times[1])]


def _summary(given: Any) -> list[Any]:
    """Return what tells the tensors of an input from others: place, shape, sum and norm."""
    return [
        (path, tuple(tensor.shape), *(float(stat) for stat in _statistics(tensor)))
        for path, tensor in leaves_of(given)
    ]


def _statistics(tensor: Tensor) -> tuple[Tensor, Tensor]:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if not tensor.is_floating_point():
        return tensor.sum(), tensor.count_nonzero()
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.sum(dtype=dtype), torch.linalg.vector_norm(tensor, dtype=dtype)
