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

    Calls that are not made at all times are left out: a layer runs at every evaluation.

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
    always = {name: min(of.get(name, 0) for of in counts) for name in counts[0]}
    return {name: n for name, n in always.items() if n and any(o.get(name) != first[name] for o in others)}


def moving_runs(call: RecordedCall) -> list[Callable[[], Any]]:
    """Return runs of the model of a recorded call: as it was, and with another noisy input, early and late."""
    model: Any = call.model
    with torch.random.fork_rng():
        noises = [torch.randn_like(call.x, dtype=torch.float32).to(call.x) for _ in range(2)]
    times = (0.75 * call.t, 0.05 * call.t) if call.t else (0.25, 0.95)  # which may rise from 0

    def run(x: Tensor, t: float) -> Callable[[], Any]:
        conditions = filled(call.conditions, {})  # models write into dictionaries, which are the recording's
        return lambda: model(**call.arguments(x, torch.tensor([t], device=x.device), conditions))

    return [run(call.x, call.t), *map(run, noises, times)]


def _summary(given: Any) -> list[Any]:
    """Return what tells the tensors of an input from others: place, shape, and sums, one of which heeds the order."""
    return [
        (path, tuple(tensor.shape), *(float(stat) for stat in _statistics(tensor)))
        for path, tensor in leaves_of(given)
    ]


def _statistics(tensor: Tensor) -> tuple[Tensor, ...]:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    whole = not tensor.is_floating_point()
    tensor = tensor.flatten().to(torch.int64 if whole else torch.promote_types(tensor.dtype, torch.float32))
    places = torch.arange(1, len(tensor) + 1, device=tensor.device)
    factors = (places * (places + 40503)).remainder(8191)  # not linear, or all permutations would be alike
    in_order = (tensor * factors.to(tensor.dtype)).sum()
    return tensor.sum(), tensor.count_nonzero() if whole else torch.linalg.vector_norm(tensor), in_order
