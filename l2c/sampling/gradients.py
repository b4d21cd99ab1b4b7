"""Gradients of the image through every step of a solver, or one sentence where its steps pass none on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from l2c.diffusion import Solver


@contextmanager
def gradients_through(solver: Solver) -> Iterator[None]:
    """Record gradients; say so where a solver's steps pass none on.

    Raises:
        ValueError: they do not.

    """
    try:
        with torch.enable_grad():
            yield
    except RuntimeError as error:
        if not any(part in str(error) for part in ("require grad", "requires grad", "inplace operation")):
            raise
        raise ValueError(
            f"policies gram and best differentiate the image through every step, but {solver.name} passes no "
            "gradient on; give the pipeline a scheduler that does (DDIMScheduler, DPMSolverMultistepScheduler, "
            "FlowMatchEulerDiscreteScheduler), or take a policy that works from changes, e.g. block_caching"
        ) from error
