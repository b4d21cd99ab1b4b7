"""Digests of many files: what they notice, and what they do not wait for."""

from __future__ import annotations

import os

import pytest

from l2c.io.digests import PIECE, digest_of_files

SIZE = 10 * PIECE


@pytest.fixture
def files(tmp_path):
    made = []
    for i in range(3):
        path = tmp_path / f"{i}.bin"
        path.write_bytes(os.urandom(SIZE))
        made.append((path.name, path))
    return made


def changed(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("most", [3 * SIZE, 6 * PIECE])
def test_names_sizes_order_and_bytes_count(files, most):
    seen = [digest_of_files(files, most=most), digest_of_files(files[::-1], most=most)]
    seen.append(digest_of_files([("other", files[0][1]), *files[1:]], most=most))
    for place in (0, SIZE - 1):
        changed(files[2][1], place)
        seen.append(digest_of_files(files, most=most))
    files[0][1].write_bytes(files[0][1].read_bytes() + b"x")
    seen.append(digest_of_files(files, most=most))
    assert len(set(seen)) == len(seen)
    assert digest_of_files(files, most=most) == seen[-1]


def test_every_byte_counts_of_few_and_pieces_of_many(files):
    before = {most: digest_of_files(files, most=most) for most in (3 * SIZE, 3 * SIZE - 1, 3 * PIECE)}
    changed(files[1][1], SIZE // 2 + 1)
    after = {most: digest_of_files(files, most=most) for most in before}
    assert [before[most] != after[most] for most in before] == [True, True, False]


def test_what_is_no_plain_file_is_not_waited_for(files, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    odd = [(name, tmp_path / name) for name in ("pipe", "link", "device")]
    whole = digest_of_files([*files, *odd])
    assert whole == digest_of_files([*files, *odd])
    (tmp_path / "pipe").unlink()
    (tmp_path / "pipe").write_bytes(b"")
    assert digest_of_files([*files, *odd]) != whole
