"""Files whole or not at all, leftovers of a kill, one process in a folder."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from l2c.io.atomic import check_writable, copy_file, output_file, replacing, sweep, write_text
from l2c.io.folder_lock import NAME, job_of_sweep, lock, lock_of, locked, locked_file
from l2c.io.tensors import check_finite, not_finite


def test_a_full_disk_is_one_sentence_with_the_target_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    class SafetensorsError(Exception):
        pass

    def write(error):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorsError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        with pytest.raises(OSError, match=r"cannot write .*a\.txt: .*No space left.*; free some space on its disk"):
            write(error)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(KeyError, match="mine"), replacing(tmp_path / "a.txt"):
        raise KeyError("mine")


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*; choose a folder that you may write to"):
        check_writable(tmp_path / "file" / "x.json")


def test_links_are_followed_and_a_circle_of_them_is_one_sentence(tmp_path):
    (tmp_path / "link").symlink_to("far/a.txt")
    check_writable(tmp_path / "link")
    with replacing(tmp_path / "link") as temporary:
        assert temporary.parent == tmp_path / "far"
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_text() == "new"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match=r"cannot write .*circle: Too many levels of symbolic links; choose"):
        check_writable(tmp_path / "circle")


def test_leftovers_of_a_kill_are_swept_and_nothing_else(tmp_path):
    code = (
        "import sys, time; from l2c.io.atomic import replacing\n"
        f"with replacing(r'{tmp_path}/deep/x.json') as t:\n"
        "    t.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGKILL)
    process.wait()
    others = [".hidden", ".part", "x-abcdefgh.part.json", ".x.json.probe", ".backup-20261127.part.json"]
    for name in others:
        (tmp_path / "deep" / name).write_text("")
    assert len(sweep(tmp_path)) == 1
    assert sorted(entry.name for entry in (tmp_path / "deep").iterdir()) == sorted(others)


def test_a_second_process_is_refused_and_a_killed_one_is_not_waited_for(tmp_path):
    code = (
        "import time; from l2c.io.folder_lock import locked\n"
        f"with locked(r'{tmp_path}'):\n    print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    refusal = pytest.raises(ValueError, match=rf"is in use by process {process.pid} on .*hydra.run.dir=PATH")
    with refusal, locked(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / NAME).is_file()
    with locked(tmp_path):
        pass
    assert not (tmp_path / NAME).exists()


THEIRS = b"a letter, of which there is no other"


@pytest.mark.parametrize(
    "kind", ["link", "dangling", "hard link", "file", "json", "huge", "pipe", "folder", "device"]
)
@pytest.mark.parametrize("of", [locked, locked_file])
def test_a_lock_touches_nothing_of_others(tmp_path, kind, of):
    (tmp_path / "letter").write_bytes(THEIRS)
    held = tmp_path / "run" if of is locked else tmp_path / "run" / "x.json"
    path = held / NAME if of is locked else lock_of(held)
    path.parent.mkdir()
    made = {
        "link": lambda: path.symlink_to(tmp_path / "letter"),
        "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
        "hard link": lambda: path.hardlink_to(tmp_path / "letter"),
        "file": lambda: path.write_bytes(THEIRS),
        "json": lambda: path.write_text('{"process": 1e999, "host": "\\u001b[2J"}'),
        "huge": lambda: path.write_bytes(b'{"process": 1, "host": "' + b"x" * 10**5 + b'"}'),
        "pipe": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    made[kind]()
    before = sorted(found.name for found in tmp_path.rglob("*"))
    content = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=rf"{path.name} is no lock of this package, .*; move it away$"), of(held):
        pass
    assert sorted(found.name for found in tmp_path.rglob("*")) == before
    assert (tmp_path / "letter").read_bytes() == THEIRS
    assert content is None or path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"process": 1e999, "host": "a"}', "another run"),
        ('{"process": true, "host": "a"}', "another run"),
        ('{"process": 7, "host": "\\u001b[2Ja"}', r"process 7 on \x1b[2Ja"),
        ("[" * 900, "another run"),
    ],
)
def test_what_a_lock_says_of_its_holder_is_shown_safely(tmp_path, content, said):
    path = lock_of(tmp_path / "x.json")
    path.write_text(content)
    handle = os.open(path, os.O_RDONLY)
    assert lock(handle)
    with (
        pytest.raises(ValueError, match=f"is in use by {re.escape(said)}; ") as refusal,
        locked_file(path.parent / "x.json"),
    ):
        pass
    os.close(handle)
    assert str(refusal.value).isprintable()


def test_an_output_is_held_while_its_command_works(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.txt").symlink_to("far/a.txt")
    with output_file("output", tmp_path / "link.txt", ours=lambda _: True), ThreadPoolExecutor(1) as another:

        def second():
            with output_file("output", tmp_path / "far" / "a.txt", ours=lambda _: True):
                pass

        with pytest.raises(ValueError, match=rf"a.txt is in use by process {os.getpid()} on .*another output"):
            another.submit(second).result()
        second_time = output_file("output", tmp_path / "far" / "a.txt", ours=lambda _: True)
        with second_time as path:  # the same thread
            path.write_text("x")
    second()
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["a.txt", "far", "link.txt"]


def test_jobs_of_a_sweep_do_not_replace_each_others_output(tmp_path):
    claimed = {}

    def job(number, name):
        with job_of_sweep(number, claimed), output_file("output", tmp_path / name, ours=lambda _: True) as path:
            path.write_text(str(number))

    (tmp_path / "link.txt").symlink_to("a.txt")
    job(0, "a.txt")
    job(0, "link.txt")
    for name in ("a.txt", "link.txt"):
        with pytest.raises(ValueError, match=rf"^output .*{name} is also that of job 0 .*job\.num.*\.txt'$"):
            job(1, name)
    assert (tmp_path / "a.txt").read_text() == "0"
    job(1, "b.txt")
    with output_file("output", tmp_path / "a.txt", ours=lambda _: True) as path:  # after the sweep
        path.write_text("again")


def test_not_finite_values_are_counted():
    images = torch.zeros(4, 1, 2, 2)
    check_finite("images", images, mend="")
    images[1, 0, 0, 0] = float("nan")
    images[3, 0, 1, 1] = float("inf")
    with pytest.raises(ValueError, match=r"2 of 4 images are not finite .*; nothing is written; lower it"):
        check_finite("images", images, mend="lower it")
    assert not_finite({"a": images, "b": torch.ones(2), "c": torch.ones(2, dtype=torch.int)}) == ["a"]


def test_an_output_takes_the_place_of_an_earlier_one_alone(tmp_path):
    ours = lambda path: path.read_text().startswith("ours")  # noqa: E731
    output = tmp_path / "a.txt"

    def taken(path):
        with output_file("output", path, ours=ours) as place:
            return place

    assert taken(str(output)) == output
    write_text(output, "ours: 1")
    assert taken(str(output)) == output
    link = tmp_path / "link.txt"
    photograph = tmp_path / "photograph.jpg"
    photograph.write_text("a photograph")
    link.symlink_to(photograph)
    for there in (photograph, link):
        with pytest.raises(ValueError, match=r"output is .*, where something else is that would be lost"):
            taken(there)
    for no_file in ("-", f"{tmp_path}/new/"):
        with pytest.raises(ValueError, match="output must be the path of a file, got"):
            taken(no_file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "link.txt", "photograph.jpg"]


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / f"{'x' * 250}.json"
    write_text(path, "{}")
    check_writable(path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_copy_to_a_full_disk_names_the_copy(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"0" * 100)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("l2c.io.atomic.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left") as failed:
        copy_file(source, target)
    monkeypatch.undo()
    assert str(target) in str(failed.value)
    assert str(source) not in str(failed.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_a_command_that_writes_nothing_leaves_no_folder(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with pytest.raises(RuntimeError), output_file("output", path, ours=lambda _: True):
        raise RuntimeError("nothing came")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with output_file("output", path, ours=lambda _: True):
        path.write_text("something")
    assert path.read_text() == "something"
