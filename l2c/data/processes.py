"""The processes that share a run: what a launcher tells each of them by environment variables, read and checked.

Lightning, torch and this package read these variables, some while they are imported. So commands check them first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from l2c.io.folder_lock import is_one_of_many
from l2c.io.names import quoted
from l2c.io.numbers import LARGEST_SEED

MOST_PROCESSES = 2**20
MOST_THREADS = 4096  # of one process; where the system has no more threads, it ends


@dataclass(frozen=True)
class Launcher:
    """The variables by which a launcher numbers processes from 0.

    Attributes:
        rank: this process's number among all.
        count: how many there are.
        local_rank: its number on its machine.
        pairs: other variables of a number, each with the one of how many there are.

    """

    rank: str
    count: str
    local_rank: str
    pairs: tuple[tuple[str, str], ...] = ()


WORLD, LOCAL_WORLD = "WORLD_SIZE", "LOCAL_WORLD_SIZE"
TORCHRUN = Launcher("RANK", WORLD, "LOCAL_RANK", (("LOCAL_RANK", LOCAL_WORLD), ("GROUP_RANK", "GROUP_WORLD_SIZE")))
SLURM = Launcher("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", (("SLURM_NODEID", "SLURM_NNODES"),))
LSF = Launcher("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK")
LAUNCHERS = (TORCHRUN, SLURM, LSF)  # torchrun's count where it runs within the others
SHELLS = ("bash", "interactive")  # names of SLURM jobs whose variables Lightning passes over
# Some of them are there in processes of several machines: torchrun, SLURM, LSF, MPI, or by hand.
SEVERAL = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")
BY_HAND = ("LOCAL_RANK", "NODE_RANK")  # or of processes that Lightning itself has started

_NUMBER, _COUNT, _PORT, _JOB = (0, MOST_PROCESSES - 1), (1, MOST_PROCESSES), (1, 65535), (0, 10**15)
_PAIRS = [pair for one in LAUNCHERS for pair in ((one.rank, one.count), *one.pairs)]
BOUNDS: dict[str, tuple[int, int]] = {  # the whole numbers that a variable may be
    **{number: _NUMBER for number, _ in _PAIRS},
    **{count: _COUNT for _, count in _PAIRS},
    **{one.local_rank: _NUMBER for one in LAUNCHERS},
    "NODE_RANK": _NUMBER,
    "SLURM_NTASKS_PER_NODE": _COUNT,
    "SLURM_JOB_ID": _JOB,
    "LSB_JOBID": _JOB,
    "MASTER_PORT": _PORT,
    "STANDALONE_PORT": _PORT,
    "PL_GLOBAL_SEED": (0, LARGEST_SEED),
    "PL_SEED_WORKERS": (0, 1),
    "HF_HUB_ETAG_TIMEOUT": (1, 10**6),  # seconds
    "HF_HUB_DOWNLOAD_TIMEOUT": (1, 10**6),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPUS = "CUDA_VISIBLE_DEVICES"
GPU = r"\s*(\d{1,3}|-1|GPU-[\w-]*|MIG-[\w/-]*|NoDevFiles)\s*"  # a number, or the start of a UUID
# Arguments of tqdm's bars that variables may set (TQDM_NCOLS), and that are numbers.
BARS = (
    "mininterval",
    "maxinterval",
    "miniters",
    "smoothing",
    "delay",
    "ncols",
    "nrows",
    "position",
    "initial",
    "total",
)
TRAINER = "PL_TRAINER_"  # Lightning takes arguments of its Trainer from variables that start so


@dataclass(frozen=True)
class Place:
    """A process among those that share a run; one that was started by itself is the only one.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number on its machine.

    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0


ALONE = Place()


def check_environment() -> None:
    """Check the environment variables of launchers, threads and GPUs, and those of bars and of the Hub's time limits.

    Raises:
        ValueError: if one has another value than those allowed, or two contradict each other.

    """
    for name, bounds in BOUNDS.items():
        if name in os.environ:
            _whole(name, os.environ[name], *bounds)
    for name in THREADS:
        for level in os.environ.get(name, "1").split(","):  # one number for each level of nested loops
            _whole(name, level, 1, MOST_THREADS)
    for name in (f"TQDM_{argument.upper()}" for argument in BARS):
        if not re.fullmatch(r"\s*[0-9]{0,9}\.?[0-9]{1,9}\s*", value := os.environ.get(name, "0")):
            raise ValueError(
                f"the environment variable {name} must be a number from 0 on, got {quoted(value)}; give it one, or "
                f"unset it (unset {name})"
            )
    gpus = os.environ.get(GPUS, "")
    if not re.fullmatch(f"({GPU}(,{GPU})*)?", gpus):
        raise ValueError(
            f"the environment variable {GPUS} must list GPUs by number or UUID (0,1 or GPU-8932f937), or be empty "
            f"for none, got {quoted(gpus)}; name those that nvidia-smi -L lists, or unset it for all"
        )
    for number, count in _PAIRS:
        _below(number, count)
    if WORLD in os.environ and _number(LOCAL_WORLD) > _number(WORLD):
        raise ValueError(
            f"the environment variables {LOCAL_WORLD}={_number(LOCAL_WORLD)} and {WORLD}={_number(WORLD)} contradict "
            "each other: there are not more processes on a machine than in all; start them by torchrun, or unset them"
        )
    for launcher in LAUNCHERS:
        if _number(launcher.rank) and launcher.count not in os.environ:
            raise ValueError(
                f"the environment variable {launcher.rank}={_number(launcher.rank)} says that this process is one of "
                f"several, but {launcher.count} does not say of how many; start it by torchrun or srun, which set "
                f"both, or unset {launcher.rank}"
            )


def _number(name: str) -> int:
    """Return the number in a variable that was checked; 0 where it is not there."""
    return int(os.environ.get(name, "0"))


def _whole(name: str, value: str, least: int, most: int) -> None:
    """Refuse what is no whole number within bounds."""
    text = value.strip()
    if not re.fullmatch(r"\+?[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise ValueError(
            f"the environment variable {name} must be a whole number in [{least}, {most}], got {quoted(value)}; give "
            f"it one, or unset it (unset {name})"
        )


def _below(number: str, count: str) -> None:
    """Refuse a number that is not below the count that goes with it."""
    if {number, count} <= set(os.environ) and _number(number) >= _number(count):
        raise ValueError(
            f"the environment variables {number}={_number(number)} and {count}={_number(count)} contradict each "
            f"other: {number} counts from 0 and stays below {count}; start the processes by torchrun or srun, which "
            "set both, or unset them"
        )


def this_place() -> Place:
    """Return this process's place among all that torchrun, SLURM or LSF started.

    Raises:
        ValueError: see `check_environment`.

    """
    check_environment()
    for launcher in LAUNCHERS:
        shell = launcher is SLURM and os.environ.get("SLURM_JOB_NAME") in SHELLS
        if {launcher.rank, launcher.count} <= set(os.environ) and not shell:
            return Place(*map(_number, (launcher.rank, launcher.count, launcher.local_rank)))
    return ALONE


def is_first_process() -> bool:
    """Return whether this is the process that writes, of all that torchrun, SLURM, LSF or Lightning started."""
    check_environment()
    return not is_one_of_many()


def started_by_torchrun() -> tuple[int, int] | None:
    """Return how many processes torchrun has started in all, and on this machine; None where it has not."""
    check_environment()
    return (_number(WORLD), _number(LOCAL_WORLD)) if {WORLD, LOCAL_WORLD} <= set(os.environ) else None


def may_be_one_of_several() -> bool:
    """Return whether anything says that this process was started beside others, on other machines perhaps."""
    return any(name in os.environ for name in SEVERAL)


def check_trainer_variables() -> None:
    """Refuse variables by which Lightning would change its Trainer, past the settings that a run records.

    Raises:
        ValueError: if there is one, or SLURM started several tasks and its variables do not number them.

    """
    check_environment()
    for name in sorted(os.environ):
        if name.startswith(TRAINER):
            raise ValueError(
                f"the environment variable {name} would change the training past its settings; unset it, and say "
                f"trainer.{name.removeprefix(TRAINER).lower()}=VALUE where the command has it"
            )
    if _number(SLURM.count) < 2 or os.environ.get("SLURM_JOB_NAME") in SHELLS:
        return
    needed = (SLURM.rank, SLURM.local_rank, "SLURM_NODEID", "SLURM_NTASKS_PER_NODE")
    if missing := [name for name in needed if name not in os.environ]:
        raise ValueError(
            f"{SLURM.count}={_number(SLURM.count)} is in the environment, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not; start the tasks by srun --ntasks-per-node=N, or unset "
            f"{SLURM.count} to run alone"
        )


def check_processes(rank: int, count: int) -> None:
    """Check that a Trainer counts the processes as the environment does; else some do nothing, or wait for ever.

    Args:
        rank: the Trainer's number of this process.
        count: its number of processes.

    Raises:
        ValueError: if they differ.

    """
    place = this_place()
    if place != ALONE and (rank, count) == (place.rank, place.count):
        return
    if place == ALONE and is_first_process() == (rank == 0):
        return
    names = [name for one in LAUNCHERS for name in (one.rank, one.count) if name in os.environ]
    said = ", ".join(f"{name}={_number(name)}" for name in dict.fromkeys([*names, *filter(os.environ.get, BY_HAND)]))
    raise ValueError(
        f"the environment ({said}) counts the processes of this run otherwise than the settings, which make this one "
        f"number {rank} of {count}; start as many by torchrun or srun as trainer.devices times trainer.num_nodes, or "
        "unset these variables"
    )
