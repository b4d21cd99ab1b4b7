"""Noise schedules, solvers and guidance; they take a callable and know nothing of caching."""

import difflib
from collections.abc import Callable

from l2c.diffusion.ddim import DDIM, DDPM
from l2c.diffusion.dpm_solver import DPMSolver2M, DPMSolver2S
from l2c.diffusion.guidance import Guidance
from l2c.diffusion.schedule import NoiseSchedule
from l2c.diffusion.solver import Evaluation, Model, Solver, Trajectory

SOLVERS: dict[str, Callable[..., Solver]] = {solver.name: solver for solver in (DDIM, DDPM, DPMSolver2S, DPMSolver2M)}


def make_solver(name: str, schedule: NoiseSchedule, num_evaluations: int, **options: float) -> Solver:
    """Build a solver by its name.

    Raises:
        ValueError: the name is unknown, or an option is not one of that solver's.

    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown solver {name!r}; known are {', '.join(SOLVERS)}{hint}")
    allowed = {"eta"} if name == "ddim" else set()
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(f"solver {name} has no option {unknown[0]!r}; its options are {sorted(allowed) or 'none'}")
    return SOLVERS[name](schedule, num_evaluations, **options)


__all__ = [
    "DDIM",
    "DDPM",
    "SOLVERS",
    "DPMSolver2M",
    "DPMSolver2S",
    "Evaluation",
    "Guidance",
    "Model",
    "NoiseSchedule",
    "Solver",
    "Trajectory",
    "make_solver",
]
