"""What launchers say in environment variables: read right, or refused in one sentence before anything is done."""

import pytest

from l2c.commands.frame.table import COMMANDS
from l2c.data.processes import (
    BARS,
    BOUNDS,
    GPUS,
    LAUNCHERS,
    MOST_PROCESSES,
    THREADS,
    Place,
    check_environment,
    check_processes,
    check_trainer_variables,
    is_first_process,
    started_by_torchrun,
    this_place,
)
from l2c.training.trainer import make_bare_trainer

NONSENSE = ("abc", "", " ", "-1", "1e30", "1.5", "nan", "0x2", "１", "9" * 40, "1,", "\x1b[2J")
COUNTS = {"RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS", "JSM_NAMESPACE_RANK": "JSM_NAMESPACE_SIZE"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Start without any of these variables."""
    bars = [f"TQDM_{name.upper()}" for name in BARS]
    for name in (*BOUNDS, *bars, *THREADS, GPUS, "SLURM_JOB_NAME", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", [*BOUNDS, *THREADS])
def test_nonsense_is_refused_in_one_sentence(monkeypatch, name):
    for value in NONSENSE:
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=rf"^the environment variable {name} must be a whole number in") as error:
            check_environment()
        assert str(error.value).isprintable()
        assert f"unset {name}" in str(error.value)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bounds_themselves_are_allowed_and_their_neighbours_not(monkeypatch, name):
    least, most = BOUNDS[name]
    if count := COUNTS.get(name):
        monkeypatch.setenv(count, str(MOST_PROCESSES))
    for value in (least, most):
        monkeypatch.setenv(name, str(value))
        if name != "LOCAL_WORLD_SIZE":
            check_environment()
    for value in (least - 1, most + 1):
        monkeypatch.setenv(name, str(value))
        with pytest.raises(ValueError, match=name):
            check_environment()


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "7", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"},
        {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"},
        {"SLURM_PROCID": "4", "SLURM_NTASKS": "4"},
        {"SLURM_NODEID": "1", "SLURM_NNODES": "1"},
        {"JSM_NAMESPACE_RANK": "1"},
        *({GPUS: value} for value in ("zzz", "0,zzz", "1e30", "-2", "0;1", "1.5", "9999", "0,")),
        *({f"TQDM_{name.upper()}": value} for name in BARS[:2] for value in ("zzz", "", "-1", "1e30", "nan")),
    ],
)
def test_contradictions_and_unknown_gpus_are_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^the environment variables? .*{next(iter(variables))}.*unset"):
        check_environment()


@pytest.mark.parametrize(
    "variables",
    [
        {"OMP_NUM_THREADS": "4,2"},
        {"TQDM_MININTERVAL": "0.5", "TQDM_NCOLS": "80"},
        *({GPUS: value} for value in ("", "0", "0,1", "-1", "GPU-8932f937", "MIG-GPU-89/1/0", "NoDevFiles", " 1, 2")),
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"},  # of a process that Lightning has started
        {"RANK": "0"},
    ],
)
def test_what_is_in_use_is_allowed(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_environment()
    assert this_place() == Place()


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda one: one.rank)
def test_each_launcher_numbers_the_processes(monkeypatch, launcher):
    for name, value in ((launcher.rank, "3"), (launcher.count, "8"), (launcher.local_rank, "1")):
        monkeypatch.setenv(name, value)
    assert this_place() == Place(3, 8, 1)
    assert not is_first_process()
    check_processes(3, 8)
    for other in ((0, 1), (3, 4), (2, 8)):
        with pytest.raises(ValueError, match=f"{launcher.rank}=3, {launcher.count}=8"):
            check_processes(*other)


def test_torchruns_counts_make_the_processes_of_a_drawing(monkeypatch):
    assert started_by_torchrun() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert started_by_torchrun() == (4, 2)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, r"RANK=1, WORLD_SIZE=2.*number 0 of 1"),
        ({"LOCAL_RANK": "1"}, r"LOCAL_RANK=1.*number 0 of 1"),
        ({"NODE_RANK": "1"}, r"NODE_RANK=1"),
        ({"SLURM_NTASKS": "2"}, r"SLURM_NTASKS=2 .* SLURM_PROCID and .* are not; start the tasks by srun"),
        ({"PL_TRAINER_FAST_DEV_RUN": "1"}, r"PL_TRAINER_FAST_DEV_RUN .*unset it, and say trainer.fast_dev_run"),
        ({"PL_TRAINER_OVERFIT_BATCHES": "zzz"}, r"PL_TRAINER_OVERFIT_BATCHES"),
    ],
)
def test_a_trainer_that_would_do_nothing_or_something_else_is_refused(monkeypatch, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        make_bare_trainer(max_steps=1, accelerator="cpu", enable_progress_bar=False)


def test_one_task_of_slurm_trains(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    check_trainer_variables()
    trainer = make_bare_trainer(max_steps=1, accelerator="cpu", devices=1, enable_progress_bar=False)
    assert trainer.is_global_zero


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_them_before_its_work(monkeypatch, command, refused, tmp_path, name):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK=7 and WORLD_SIZE=2" in refused(command(name, cwd=tmp_path))
    assert not any(tmp_path.iterdir())
