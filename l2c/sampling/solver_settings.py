"""Settings of solver, number of evaluations and guidance scale, for commands and Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2c.graph.checks import MAX_EVALUATIONS, MAX_OPTION
from l2c.io.settings import Either, Number, Settings, Table, number, ruled, text, whole

SOLVER_NAMES = ("ddim", "ddpm", "dpm_solver_2s", "dpm_solver_2m", "flow_euler", "flow_dpm_2m", "pipeline")
LARGEST_SCALE = 1000.0  # of guidance; published ones are below 20


@dataclass(frozen=True)
class SolverSettings(Settings, group="solver"):
    """A solver and its guidance.

    Attributes:
        name: the solver; `pipeline` is the scheduler of a diffusers pipeline.
        num_evaluations: calls of the backbone in a trajectory.
        cfg_scale: guidance scale; None = the graph's, else the published one, where there is one.
        options: options of the solver: `eta` of ddim, in [0, 1]; `shift` of flows, in [1e-6, 1e6].

    """

    name: str = text(choices=SOLVER_NAMES)
    num_evaluations: int = whole(20, at_least=1, at_most=MAX_EVALUATIONS)
    cfg_scale: float | None = number(None, at_least=0, at_most=LARGEST_SCALE, optional=True, example=1.5)
    options: dict[str, Any] = ruled(
        Either(
            rules=(
                Table(item=Number(at_least=0, at_most=1), names=("eta",)),
                Table(item=Number(at_least=1 / MAX_OPTION, at_most=MAX_OPTION), names=("shift",)),
            ),
            example="{eta: 0.0}",
        ),
        {},
    )


@dataclass(frozen=True)
class PartialSolverSettings(SolverSettings):
    """A solver of which a graph or a preset fills in what is left out."""

    name: str | None = text(None, choices=SOLVER_NAMES, optional=True)  # type: ignore[assignment]
    num_evaluations: int | None = whole(None, at_least=1, at_most=MAX_EVALUATIONS, optional=True)  # type: ignore[assignment]
