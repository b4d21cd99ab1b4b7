"""Full disks, read-only folders, no memory: one sentence from every command, nothing half-written."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from cheap import commands
from forked import run
from test_kills import check_whole, inputs  # noqa: F401 - a fixture

NAMES = list(commands(Path()))
LARGE = [name for name, cheap in commands(Path()).items() if cheap.large]
IN_SUITE = ("sample",)
GIGABYTE = 2**30
MEGABYTE = 2**20


def crashed(ended, folder):
    """Say whether a run died in C code that got no memory (numpy, Python itself), where no sentence can be said."""
    if ended.code == -signal.SIGSEGV:
        check_whole(folder)
    return ended.code == -signal.SIGSEGV


def check(ended, folder, words):
    assert ended.code == 0 or ended.sentence, ended.err
    assert ended.sentence is None or any(word in ended.sentence for word in words), ended.sentence
    check_whole(folder)
    assert not [path.name for path in folder.rglob(".*") if ".part" in path.name or path.name == ".run.lock"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_cannot_grow_is_one_sentence(name, tmp_path, inputs, times, counted):  # noqa: F811
    refused = 0
    for size in (0, 300, 3000, 30_000)[: times(2 if name in IN_SUITE else 0, 4)]:
        folder = tmp_path / str(size)
        ended = run(commands(inputs)[name].line, folder, file_size=size)
        check(ended, folder, ("File too large",))
        refused += ended.code != 0
    assert refused
    counted(refused=refused)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 100 kB, where this user may."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=100k", "none", place], capture_output=True)
    if not done or done.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_full_and_read_only_disks_are_one_sentence(name, small_disk, inputs, times, counted):  # noqa: F811
    times(1 if name == "graph" else 0, 1)
    line = commands(inputs)[name].line
    (small_disk / "ballast").write_bytes(bytes(60 * 1024))
    check(run(line, small_disk / "full"), small_disk, ("No space left", "are free in"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    (small_disk / "full").is_dir()
    ended = run(line, small_disk)
    assert ended.sentence, ended.err
    assert "Read-only file system" in ended.sentence
    counted(full_and_read_only=1)


@pytest.mark.parametrize("name", LARGE)
def test_no_memory_is_one_sentence_that_says_what_lowers_it(name, tmp_path, inputs, times, counted):  # noqa: F811
    times(1 if name in IN_SUITE else 0, 1)
    cheap = commands(inputs)[name]
    given = {setting.partition("=")[0] for setting in cheap.large}
    line = [part for part in cheap.line if part.partition("=")[0] not in given]
    ended = run([*line, *cheap.large], tmp_path / "run", memory=GIGABYTE)
    assert ended.sentence, ended.err
    assert "out of memory" in ended.sentence
    names = ("fewer images", *(setting.partition("=")[0].rpartition(".")[2] for setting in cheap.large))
    assert any(name in ended.sentence for name in names), ended.sentence
    counted(refused=1)


@pytest.mark.parametrize("name", NAMES)
def test_little_memory_is_enough_or_one_sentence(name, tmp_path, inputs, times, counted):  # noqa: F811
    refused = died = 0
    for size in (8, 16, 32, 48, 64, 96, 128)[: times(1 if name in ("graph", "sample") else 0, 7)]:
        folder = tmp_path / str(size)
        ended = run(commands(inputs)[name].line, folder, memory=size * MEGABYTE)
        if crashed(ended, folder):
            died += 1
            continue
        check(ended, folder, ("out of memory",))
        refused += ended.code != 0
    assert died <= 1
    counted(refused=refused, died=died)  # how little is too little depends on what the machine has loaded


@pytest.mark.parametrize("size", [0, MEGABYTE])
def test_hardly_any_memory_is_enough_or_one_sentence(size, tmp_path, inputs, counted):  # noqa: F811
    folder = tmp_path / "work"
    ended = run(commands(inputs)["graph"].line, folder, memory=size)
    if crashed(ended, folder):
        pytest.skip("C code died without memory")
    # Freed memory that the process has kept may be enough, or last up to the graph's picture: then the graph stays.
    check(ended, folder, ("out of memory",))
    if ended.code:
        assert {path.name for path in folder.rglob("*") if path.is_file()} <= {"cache_graph.json"}
    counted(refused=ended.code != 0)
