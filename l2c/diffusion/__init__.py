"""Noise schedules, solvers and guidance; they take a callable and know nothing of caching."""

from collections.abc import Callable

from l2c.diffusion.ddim import DDIM, DDPM
from l2c.diffusion.dpm_solver import DPMSolver2M, DPMSolver2S
from l2c.diffusion.flow import FlowDPM2M, FlowEuler
from l2c.diffusion.guidance import Guidance
from l2c.diffusion.schedule import FLOW, FlowSchedule, NoiseSchedule, Schedule, schedule_of
from l2c.diffusion.solver import Evaluation, Model, Solver, Trajectory
from l2c.graph.checks import MAX_EVALUATIONS
from l2c.io.names import chosen, quoted
from l2c.io.numbers import whole_number

_KINDS: tuple[type[Solver], ...] = (DDIM, DDPM, DPMSolver2S, DPMSolver2M, FlowEuler, FlowDPM2M)
SOLVERS: dict[str, Callable[..., Solver]] = {kind.name: kind for kind in _KINDS}
FLOW_SOLVERS = tuple(kind.name for kind in _KINDS if FLOW in kind.schedules)
DIFFUSION_SOLVERS = tuple(kind.name for kind in _KINDS if kind.name not in FLOW_SOLVERS)


def make_solver(name: str, schedule: Schedule, num_evaluations: int, **options: float) -> Solver:
    """Build a solver by its name.

    Raises:
        ValueError: if the name is unknown, the solver cannot follow the schedule, it has no such option, or the
            number is no whole number in 1..4096.

    """
    chosen("solver", name, SOLVERS)
    num_evaluations = whole_number("num_evaluations", num_evaluations, low=1, high=MAX_EVALUATIONS)
    if not isinstance(schedule, Schedule):
        raise ValueError(f"a solver needs a noise schedule (l2c.diffusion.NoiseSchedule), got {quoted(schedule)}")
    fitting = [kind.name for kind in _KINDS if kind.follows(schedule)]
    if name not in fitting:
        raise ValueError(
            f"solver {name} cannot follow the noise schedule {schedule.name} of these weights; take one of "
            f"{', '.join(fitting)}"
        )
    allowed = {"shift"} if name in FLOW_SOLVERS else {"eta"} if name == "ddim" else set()
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(f"solver {name} has no option {unknown[0]!r}; its options are {sorted(allowed) or 'none'}")
    return SOLVERS[name](schedule, num_evaluations, **options)


__all__ = [
    "DDIM",
    "DDPM",
    "DIFFUSION_SOLVERS",
    "FLOW_SOLVERS",
    "SOLVERS",
    "DPMSolver2M",
    "DPMSolver2S",
    "Evaluation",
    "FlowDPM2M",
    "FlowEuler",
    "FlowSchedule",
    "Guidance",
    "Model",
    "NoiseSchedule",
    "Schedule",
    "Solver",
    "Trajectory",
    "make_solver",
    "schedule_of",
]
