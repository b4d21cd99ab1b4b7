"""kill -9 at random moments: nothing is half-written, and the next run ends as an undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from cheap import ADDRESS, commands, prepare, without_times
from forked import changes_of, command, noting_changes, run, slow_server, start, warm
from PIL import Image
from safetensors.torch import load_file

IN_SUITE = ("train", "sample-many")  # one kill each; the others in make soak
NAMES = list(commands(Path()))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    prepare(folder)
    warm()
    with slow_server() as address:
        (folder / ADDRESS).write_text(address)
        yield folder


def check_whole(folder):
    """Read every file of a run that has its final name."""
    for path in (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".png":
            Image.open(path).verify()


def results(folder, patterns):
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {str(path.relative_to(folder)): without_times(path) for path in found}


def undisturbed(cheap, folder, work=None):
    """Run a command to its end in a folder; return how it ended and its results."""
    whole = start(work or command(cheap.line), folder).wait(300.0)
    assert whole.code == 0, whole.err
    found = results(folder, cheap.results)
    assert found, "nothing to compare"
    return whole, found


def leftovers(folder):
    """Return the names of what a killed run has left and the next one has not removed."""
    found = [path.name for path in folder.rglob("*")]
    return [name for name in found if ".part" in name or name.endswith((".lock", ".aside"))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_command_loses_nothing(name, number, tmp_path, inputs, times, counted):
    tried = times(1 if name in IN_SUITE else 0, 10)
    cheap, source = commands(inputs)[name], random.Random(f"{name} {number}")
    whole, expected = undisturbed(cheap, tmp_path / "whole")
    ended = 0
    for trial in range(tried):
        folder = tmp_path / f"trial{trial}"
        after = source.uniform(0.1, 1.0) * whole.seconds
        stopped = start(command(cheap.line), folder).signal_after(after, number)
        ended += stopped.code == 0
        assert stopped.code in (0, 128 + number, -number), (after, stopped)  # a shell says 128 + number for -number
        assert "Traceback" not in stopped.err, stopped.err[-2000:]
        check_whole(folder)
        again = run(cheap.line, folder)
        assert again.code == 0, again.err
        assert results(folder, cheap.results) == expected
    counted(interrupted=tried - ended, ended_before=ended)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_command_loses_nothing(name, place, inputs, times, counted):
    tried = times(1 if name in IN_SUITE and str(place).startswith("/dev/shm") else 0, 9)
    cheap, source = commands(inputs)[name], random.Random(name)
    whole, expected = undisturbed(cheap, place / "whole")
    ended = 0
    for trial in range(tried):
        folder = place / f"trial{trial}"
        killed = start(command(cheap.line), folder).kill_after(source.uniform(0.2, 1.0) * whole.seconds)
        ended += killed.code == 0
        check_whole(folder)
        again = run(cheap.line, folder)
        assert again.code == 0, again.err
        assert results(folder, cheap.results) == expected
        assert not leftovers(folder)
        shutil.rmtree(folder)
    counted(killed=tried - ended, ended_before=ended)


def before_the_first_last(changes):
    """Return the number of the change by which a training's first last.ckpt appears; a step's checkpoint is there."""
    return [next(i for i, change in enumerate(changes) if change == "os.rename run/last.ckpt")]


def every_third(changes):
    return range(0, len(changes), 3)


AT_ONCE = {"train": before_the_first_last, "download-emoji": every_third}  # in the suite


@pytest.mark.parametrize("name", NAMES)
def test_a_command_killed_before_a_change_of_its_files_loses_nothing(name, tmp_path, inputs, times, counted):
    most = times(1 if name in AT_ONCE else 0, 30)
    cheap, work = commands(inputs)[name], command(commands(inputs)[name].line)
    whole, expected = undisturbed(cheap, tmp_path / "whole", noting_changes(work))
    changes = changes_of(whole)
    moments = [] if most == 1 else range(0, len(changes), -(-len(changes) // most))
    moments = sorted({*moments, *(AT_ONCE[name](changes) if name in AT_ONCE else ())})
    for moment in moments:
        folder = tmp_path / f"before{moment}"
        killed = start(noting_changes(work, kill_before=moment), folder).wait()
        assert killed.code == -signal.SIGKILL, (changes[moment], killed.err)
        check_whole(folder)
        again = run(cheap.line, folder)
        assert again.code == 0, (changes[moment], again.err)
        assert results(folder, cheap.results) == expected, changes[moment]
        assert not leftovers(folder), changes[moment]
        shutil.rmtree(folder)
    counted(changes=len(changes), killed=len(moments))


@pytest.mark.parametrize("name", NAMES)
def test_of_two_runs_at_once_one_is_refused_or_both_are_right(name, tmp_path, inputs, times, counted):
    tried = times(1 if name == "train" else 0, 6)
    cheap, source = commands(inputs)[name], random.Random(name)
    whole, expected = undisturbed(cheap, tmp_path / "whole")
    refused = 0
    for trial in range(tried):
        folder = tmp_path / f"trial{trial}"
        children = [start(command(cheap.line), folder)]
        time.sleep(source.uniform(0, 0.8) * whole.seconds * (trial % 3 > 0))  # a third of them begin together
        children.append(start(command(cheap.line), folder))
        ended = [child.wait() for child in children]
        assert 0 in [one.code for one in ended], ended
        for one in ended:
            assert one.code == 0 or (one.sentence and " is in use by " in one.sentence), one.err[-800:]
            refused += one.code != 0
        check_whole(folder)
        assert results(folder, cheap.results) == expected
        assert not leftovers(folder)
    counted(pairs=tried, refused=refused)
