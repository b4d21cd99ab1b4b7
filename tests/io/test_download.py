"""Downloads from a server on this machine: resumed, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import CONTENT, Server

from l2c.io import download as module
from l2c.io.download import direct_address, download, keep_local
from l2c.io.folder_lock import locked_file

SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def url(server):
    return server.url


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_file_arrives_and_is_not_fetched_twice(server, url, tmp_path):
    path = tmp_path / "new" / "weights.pt"
    for _ in range(2):
        assert download(url, path, size=len(CONTENT), sha256=SHA256, progress=False) == path
        assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"weights.pt"}
    assert server.asked == [None]


def test_a_file_cut_short_continues(server, url, tmp_path):
    path = tmp_path / "weights.pt"
    server.cut_at = 300_000
    says = rf"cut short after 300000 of 1048576 bytes, which are in {path}\.part \(.*again, it goes on .* to {path}$"
    with pytest.raises(OSError, match=says):
        download(url, path, progress=False)
    assert not path.exists()
    server.cut_at = None
    download(url, path, sha256=SHA256, progress=False)
    assert server.asked == [None, "bytes=300000-"]
    assert names(tmp_path) == {"weights.pt"}


def test_a_file_that_changed_in_between_is_fetched_anew(server, url, tmp_path):
    server.cut_at = 1000
    with pytest.raises(OSError, match="cut short"):
        download(url, tmp_path / "weights.pt", progress=False)
    server.cut_at, server.etag, server.content = None, '"two"', CONTENT[::-1]
    assert download(url, tmp_path / "weights.pt", progress=False).read_bytes() == CONTENT[::-1]


def test_without_a_mark_of_the_version_it_begins_anew_and_says_so(server, url, tmp_path):
    server.cut_at, server.etag = 1000, 'W/"weak"'
    with pytest.raises(
        OSError, match=r"cut short after 1000 of 1048576 .* run the same command again, it begins anew"
    ):
        download(url, tmp_path / "weights.pt", progress=False)
    server.cut_at = None
    download(url, tmp_path / "weights.pt", sha256=SHA256, progress=False)
    assert server.asked == [None, None]


def tag_of(server, folder):
    content = {"format": module.FORMAT, "url": server.url, "mark": server.etag}
    (folder / "weights.pt.part.tag").write_text(json.dumps(content), encoding="utf-8")


def test_a_complete_part_is_taken_over(server, url, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(CONTENT)
    tag_of(server, tmp_path)
    assert download(url, tmp_path / "weights.pt", sha256=SHA256, progress=False).read_bytes() == CONTENT


def test_two_downloads_to_one_path_do_not_mix(server, url, tmp_path):
    path = tmp_path / "weights.pt"
    with locked_file(path), ThreadPoolExecutor(1) as another:
        second = another.submit(download, url, path, progress=False)
        with pytest.raises(ValueError, match=rf"weights\.pt is in use by process {os.getpid()} on"):
            second.result()
    assert server.asked == []
    assert download(url, path, sha256=SHA256, progress=False) == path
    assert names(tmp_path) == {"weights.pt"}


THEIRS = b"\xff\r\n a photograph"


@pytest.mark.parametrize("end", [".part", ".part.tag"])
@pytest.mark.parametrize("kind", ["file", "empty", "of an earlier version", "link", "pipe", "folder"])
def test_a_part_of_others_is_not_touched(server, url, tmp_path, end, kind):
    path, kept = tmp_path / f"weights.pt{end}", tmp_path / "kept"
    kept.write_bytes(THEIRS)
    made = {
        "file": lambda: path.write_bytes(THEIRS),
        "empty": lambda: path.write_bytes(b""),
        "of an earlier version": lambda: path.write_bytes(b'"one"'),
        "link": lambda: path.symlink_to(kept),
        "pipe": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
    }
    made[kind]()
    content = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=rf"weights\.pt{end} is where a download .* no download .*; move it away"):
        download(url, tmp_path / "weights.pt", progress=False)
    assert server.asked == []
    assert names(tmp_path) == {path.name, "kept"}
    assert kept.read_bytes() == THEIRS
    assert content is None or path.read_bytes() == content


def test_a_part_of_another_address_is_not_gone_on_with(server, url, tmp_path):
    server.cut_at = 1000
    with pytest.raises(OSError, match="cut short"):
        download(url, tmp_path / "weights.pt", progress=False)
    server.cut_at = None
    download(url.replace("weights.pt", "others.pt"), tmp_path / "weights.pt", sha256=SHA256, progress=False)
    assert server.asked == [None, None]
    assert names(tmp_path) == {"weights.pt"}


def test_another_part_than_asked_for_is_refused(server, url, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(CONTENT[:1000])
    tag_of(server, tmp_path)
    server.wrong_start = 1
    with pytest.raises(ValueError, match="sends another part of the file than was asked for"):
        download(url, tmp_path / "weights.pt", progress=False)


def test_what_a_killed_download_left_beside_the_whole_file_is_removed(server, url, tmp_path):
    (tmp_path / "weights.pt").write_bytes(CONTENT)
    tag_of(server, tmp_path)
    download(url, tmp_path / "weights.pt", progress=False)
    assert names(tmp_path) == {"weights.pt"}


def test_a_file_by_the_name_of_a_part_is_not_removed(url, tmp_path):
    (tmp_path / "w.part").write_bytes(THEIRS)
    with pytest.raises(ValueError, match="is there already but has"):
        download(url, tmp_path / "w.part", sha256=SHA256, progress=False)
    assert (tmp_path / "w.part").read_bytes() == THEIRS


def test_a_wrong_file_is_refused_and_removed(url, tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match=r"the SHA-256 .* instead of 00.* was removed"):
        download(url, path, sha256="00", progress=False)
    with pytest.raises(ValueError, match="1048576 bytes, but 5 are expected"):
        download(url, path, size=5, progress=False)
    path.write_bytes(CONTENT[:9])
    with pytest.raises(ValueError, match="there already but has 9 bytes instead of 1048576; delete it"):
        download(url, path, size=len(CONTENT), progress=False)


def test_bad_addresses_are_refused(url, tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(OSError, match="answers 404"):
        download(url.replace("weights.pt", "missing"), path, progress=False)
    with pytest.raises(ValueError, match="gives a web page, not a file"):
        download(url.replace("weights.pt", "page"), path, progress=False)
    with pytest.raises(OSError, match=r"cannot reach http://127.0.0.1:1/"):
        download("http://127.0.0.1:1/weights.pt", path, progress=False)
    assert not names(tmp_path)


def test_a_full_disk_is_said_and_resumed(server, url, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="needs 1048576 more bytes, but only 10 are free"):
        download(url, tmp_path / "weights.pt", progress=False)
    monkeypatch.undo()
    own = Path.open

    def full(self, *arguments, **named):
        opened = own(self, *arguments, **named)
        if self.suffix != ".part":
            return opened
        opened.close()
        return own(Path("/dev/full"), "wb")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"the disk of .* is full .* run again"):
        download(url, tmp_path / "weights.pt", progress=False)


def test_google_drive_pages_have_a_direct_address():
    assert "id=13Stu-_Q&" in direct_address("https://drive.google.com/file/d/13Stu-_Q")
    assert direct_address("https://example.org/a.pt") == "https://example.org/a.pt"


def test_a_local_file_is_checked_and_copied(tmp_path):
    (tmp_path / "mine.pt").write_bytes(CONTENT)
    output = tmp_path / "checkpoints" / "weights.pt"
    for _ in range(2):
        assert keep_local(tmp_path / "mine.pt", output, sha256=SHA256).read_bytes() == CONTENT
    assert keep_local(output, output).read_bytes() == CONTENT
    with pytest.raises(ValueError, match=rf"mine.pt has the SHA-256 {SHA256} instead of 00"):
        keep_local(tmp_path / "mine.pt", output, sha256="00")
    with pytest.raises(FileNotFoundError, match=r"no file at .*other.pt; give the path of the weights"):
        keep_local(tmp_path / "other.pt", output)


def test_the_command(call, refused, url, tmp_path):
    output = tmp_path / "w.pt"
    script = "scripts/download_weights.py"
    for source in (("--url", url), ("--file", output)):
        done = call(script, "dit_xl2", *source, "--output", output)
        assert done.returncode == 0, done.stderr
        assert f"wrote {output}" in done.stdout
    default = call(script, "dit_xl2", "--file", output, L2C_CHECKPOINTS=str(tmp_path / "kept"))
    assert f"wrote {tmp_path / 'kept' / 'DiT-XL-2-256x256.pt'}" in default.stdout
    for arguments, message in (
        (("dit_xl3",), "unknown model 'dit_xl3'; did you mean"),
        (("dit_b2",), "no weights of dit_b2 are published"),
        (
            ("dit_xl2", "--url", "http://127.0.0.1:1/w.pt"),
            "check the network and run again, or fetch the file elsewhere",
        ),
        (("dit_xl2", "--url", url, "--file", output), "--file and --url are two sources of one file"),
    ):
        assert message in refused(call(script, *arguments))
