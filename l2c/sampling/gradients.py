"""Probes whether gradients pass through every step of a solver."""

from __future__ import annotations

import torch
from torch import nn

from l2c.backbones.digest import weights_in
from l2c.diffusion import Solver


def differentiable(solver: Solver, shape: tuple[int, ...]) -> bool:
    """Return whether a gradient reaches a solver's outputs, probed with one x of a shape (C, H, W)."""
    output = torch.zeros(1, *shape, requires_grad=True)
    try:
        with torch.enable_grad():
            image = solver.sample(lambda x, t: output * t, torch.ones(1, *shape))
            image.sum().backward()
    except RuntimeError:  # nothing to differentiate, or changed in place
        return False
    return output.grad is not None


def check_differentiable(solver: Solver, shape: tuple[int, ...]) -> None:
    """Refuse a solver whose steps pass no gradient on, for the policies that need one.

    Raises:
        ValueError: if no gradient passes through the solver.

    """
    if not differentiable(solver, shape):
        raise ValueError(
            f"policies gram and best differentiate the image through every step, but {solver.name} passes no "
            "gradient on; give the pipeline a scheduler that does (DDIMScheduler, DPMSolverMultistepScheduler, "
            "FlowMatchEulerDiscreteScheduler), for gram measure forward passes alone (responses.method=forward), or "
            "take a policy that works from changes, e.g. block_caching"
        )


def check_weights(model: nn.Module, name: str) -> None:
    """Refuse weights that torch lets no gradient pass through, however they are used.

    Args:
        model: the model, whose weights may be frozen.
        name: what to call it.

    Raises:
        ValueError: if one was made under `torch.inference_mode`.

    """
    if any(weight.is_inference() for weight in weights_in(model)):
        raise ValueError(
            f"weights of {name} were made under torch.inference_mode, so that no gradient passes through them; load "
            "the model outside of it (torch.no_grad serves as well), or measure by forward passes alone "
            "(responses.method=forward)"
        )
