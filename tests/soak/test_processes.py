"""Several processes: trainings that go on with another number of them, shares of nothing, one that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_counts import TOLERANCE, far, train  # noqa: F401 - a fixture


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("data", ["digits", "noise"])
def test_another_number_of_processes_goes_on(train, tmp_path, times, counted, data, before, after):  # noqa: F811
    times(0, 1)
    changes = [f"data={data}", "router=l2c" if data == "digits" else "router=budget"]
    train(tmp_path / "run", *changes, "trainer.max_steps=3", f"trainer.devices={before}", processes=before)
    longer = [*changes, "trainer.max_steps=6"]
    resumed = train(tmp_path / "run", *longer, f"trainer.devices={after}", "resume=auto", processes=after)
    assert f"was shared by {before} process" in train.said[-1]
    difference = far(resumed, train(tmp_path / "whole", *longer))
    counted(difference=f"{difference:.1e}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("devices", [2, 3])
def test_a_process_that_has_no_shard_to_draw_waits_for_the_others(call_process, tmp_path, times, devices):
    line = ["scripts/sample_many.py", "graph=dit_digits_ddim20", "num_images=6", "batch_size=2", "shard_size=2"]
    for count in range(times(0, 4)):
        for name, processes in (("one", 1), ("several", devices)):
            folder = tmp_path / name
            for k in range(count):  # the shards that are missing belong to some of the processes
                (folder / f"samples-0000{(k + 1) % 3}-of-00003.safetensors").unlink()
            many = [f"trainer.devices={processes}", "trainer.accelerator=cpu", f"hydra.run.dir={folder}"]
            done = call_process(*line, *many)
            assert done.returncode == 0, done.stderr[-3000:]
            assert f"drew {2 * count if count else 6} of 6 images" in done.stdout
        one, several = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "several"))
        assert one == several


@pytest.mark.parametrize("command", ["train", "sample-many"])
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_process_that_is_killed_ends_the_others(tmp_path, times, command, which):
    """Kill one of two processes; nobody hangs, works on or prints a traceback, and the same command goes on."""
    many = {"train": ["model=dit_digits", "data=noise", "data.batch_size=2", "trainer.max_steps=4000", "resume=auto"]}
    line = many.get(command) or ["graph=dit_digits_ddim20", "num_images=6000", "shard_size=20", "batch_size=2"]
    for trial in range(times(0, 3)):
        words = [*line, "trainer.devices=2", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path / 'run'}"]
        with (tmp_path / "said").open("w+") as said:
            first = subprocess.Popen([sys.executable, "-m", "l2c", command, *words], stdout=said, stderr=said)
            try:
                second = child_of(first)
                time.sleep(1 + 3 * trial)
                os.kill(first.pid if which == "first" else second, signal.SIGKILL)
                assert first.wait(20) == (-signal.SIGKILL if which == "first" else 1)
                assert ended(second, 20)
            finally:
                first.kill()
            said.seek(0)
            text = said.read()
        assert "Traceback" not in text
        assert "cannot go on, because" in text


def child_of(process):
    """Wait for the process that another one starts; return its number."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(600):
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.1)
    raise AssertionError("no process was started")


def ended(number, seconds):
    """Return whether a process that is nobody's child any more ends in time."""
    for _ in range(10 * seconds):
        status = Path(f"/proc/{number}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
