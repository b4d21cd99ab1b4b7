"""The end of one process of a run, as the others see it."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from torch.distributed import DistBackendError

from l2c.training import other_processes
from l2c.training.other_processes import looking_after
from l2c.training.trainer import make_bare_trainer
from l2c.training.watch import watched


@pytest.fixture
def look(monkeypatch):
    """Return the function that lets a process look after others; it returns the code that it ends with, or None."""
    monkeypatch.setattr(other_processes, "EVERY", 0.01)
    monkeypatch.setattr(other_processes, "GRACE", 0.05)

    def run(rank, procs, seconds, gone=False):
        codes, ended, stop = [], threading.Event(), threading.Event()

        def end(code):
            codes.append(code)
            ended.set()
            stop.wait()

        monkeypatch.setattr(other_processes.os, "_exit", end)
        launcher = SimpleNamespace(procs=procs) if rank == 0 else None
        trainer = SimpleNamespace(global_rank=rank, world_size=3, strategy=SimpleNamespace(launcher=launcher))
        threading.Thread(target=stop.wait, name="child-process-observer").start()
        with looking_after(trainer):
            assert (other_processes.FIRST in os.environ) == (rank == 0)
            if gone:
                monkeypatch.setattr(other_processes.os, "getppid", lambda: 1)
            ended.wait(seconds)
        stop.set()
        assert other_processes.FIRST not in os.environ
        assert procs == [], "Lightning's observer, which would kill this process, has none left"
        return codes[0] if codes else None

    return run


def started(code):
    done = subprocess.Popen([sys.executable, "-S", "-c", f"import os; {code}"])
    done.wait()
    return done


def test_the_first_process_ends_where_another_one_fails(look, capsys):
    works = subprocess.Popen(["sleep", "60"])
    assert look(0, [works, started("os._exit(3)")], 10) == 1
    assert "error: process 0 of 3 cannot go on, because process 2 (code 3) has ended; " in capsys.readouterr().err
    assert works.wait(5) == -9, "the others end too"
    assert look(0, [started("os.kill(os.getpid(), 9)")], 10) == 1
    assert "process 1 (signal 9) has ended" in capsys.readouterr().err


def test_others_end_where_the_first_process_has(look, capsys):
    assert look(2, [], 10, gone=True) == 1
    assert "error: process 2 of 3 cannot go on, because the process that started" in capsys.readouterr().err


def test_processes_whose_work_is_done_are_not_missed(look, monkeypatch):
    assert look(0, [started("pass")], 0.3) is None
    monkeypatch.setattr(other_processes, "GRACE", 1.0)
    assert look(0, [started("os._exit(3)")], 0.1) is None, "this process tells what is wrong itself"


@pytest.mark.parametrize(
    "error", [RuntimeError("[gloo/pair.cc] Connection closed by peer"), DistBackendError("NCCL")]
)
def test_a_lost_connection_is_a_sentence_where_processes_share_a_run(error, monkeypatch):
    trainer = make_bare_trainer(max_steps=1, accelerator="cpu", devices=1)
    with pytest.raises(RuntimeError, match=str(error)[-4:]), watched(trainer):
        raise error
    monkeypatch.setattr(type(trainer), "world_size", 2)
    with pytest.raises(ConnectionError, match="process 0 of 2 cannot go on, because another one"), watched(trainer):
        raise error
    with pytest.raises(RuntimeError, match="of something else"), watched(trainer):
        raise RuntimeError("of something else")
