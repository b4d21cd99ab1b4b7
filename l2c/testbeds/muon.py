"""Muon (Jordan et al., 2024) for matrices with AdamW for everything else, as one optimiser.

torch.optim.Muon multiplies in bfloat16, one matrix after the other, which a CPU without such units does ten times
slower than this; and Lightning steps and saves a single optimiser by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as published
NUM_ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (..., A, B) with all singular values near 1, by a Newton-Schulz iteration in 32 bits."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Steps of Muon for matrices (A, B), scaled by sqrt(max(1, A / B)), and of AdamW for the other weights.

    Args:
        matrices: weights of two dimensions.
        others: all the other weights.
        muon_learning_rate: learning rate of the matrices.
        learning_rate: learning rate of the others.
        weight_decay: weight decay of both, decoupled.
        momentum: momentum of Muon, in Nesterov's form.

    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        matrices = list(matrices)
        wrong = [tuple(p.shape) for p in matrices if p.ndim != 2]
        if wrong:
            raise ValueError(f"Muon takes matrices, got a weight of shape {wrong[0]}; give it among the others")
        groups = [
            {"params": matrices, "lr": muon_learning_rate, "muon": True},
            {"params": list(others), "lr": learning_rate, "muon": False},
        ]
        super().__init__(groups, {"weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._muon_step(weights, group)
            elif weights:
                self._adamw_step(weights, group)
        return loss

    def _muon_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in weights:
            by_shape.setdefault(p.shape, []).append(p)
        for (rows, columns), alike in by_shape.items():
            updates = []
            for p in alike:
                assert p.grad is not None
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(average, group["momentum"]))
            steps = orthogonalized(torch.stack(updates))
            scale = max(1.0, rows / columns) ** 0.5
            for p, update in zip(alike, steps, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)

    def _adamw_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for p in weights:
            if not self.state[p]:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": torch.tensor(0.0),
                }
        adamw(
            weights,
            [p.grad for p in weights if p.grad is not None],
            [self.state[p]["exp_avg"] for p in weights],
            [self.state[p]["exp_avg_sq"] for p in weights],
            [],
            [self.state[p]["step"] for p in weights],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
