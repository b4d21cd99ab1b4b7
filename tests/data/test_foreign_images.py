"""Images of strangers: shown as a viewer shows them, or named and counted."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from l2c.data.image_folder import ImageFolder

RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64)  # dark at the top


@pytest.fixture
def read(tmp_path):
    """Return the function that reads one image file, which another one wrote into the folder."""
    (tmp_path / "class").mkdir()

    def read_one(write, name="a.png"):
        path = tmp_path / "class" / name
        write(path)
        images = ImageFolder(tmp_path, 32)
        return images.read(images.paths.index(path))

    return read_one


def halves(image):
    """Return the mean of the upper and of the lower half, one number a colour."""
    return [[round(float(v), 1) for v in half.mean((1, 2))] for half in (image[:, :16], image[:, 16:])]


def test_deep_grey_images_keep_their_greys(read):
    eight = read(lambda path: Image.fromarray((RAMP / 256).astype(np.uint8)).save(path))
    sixteen = read(lambda path: Image.fromarray(RAMP.astype(np.uint16)).save(path), "b.png")
    assert halves(eight) == [[-0.5] * 3, [0.5] * 3]
    assert float((eight - sixteen).abs().max()) <= 2 / 127.5


def test_transparent_images_lie_on_white(read):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # red everywhere, to be seen in the lower half alone
    pixels[32:, :, 3] = 255
    assert halves(read(lambda path: Image.fromarray(pixels).save(path))) == [[1, 1, 1], [1, -1, -1]]
    grey = read(lambda path: Image.fromarray(pixels[..., [1, 3]], "LA").save(path), "b.png")
    assert halves(grey) == [[1, 1, 1], [-1, -1, -1]]


def test_palettes_and_inks_give_their_colours(read):
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    assert halves(read(lambda path: red.convert("P").save(path))) == [[1, -1, -1]] * 2
    assert halves(read(lambda path: red.convert("CMYK").save(path), "a.jpg")) == [[1, -1, -1]] * 2


def test_cameras_that_were_turned_are_turned_back(read):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = 255  # white on the left; turned clockwise by a quarter: white at the top
    tag = Image.Exif()
    tag[0x0112] = 6
    assert halves(read(lambda path: Image.fromarray(pixels).save(path, exif=tag))) == [[1] * 3, [-1] * 3]


def test_hidden_files_and_folders_are_no_classes_and_empty_ones_are_named(tmp_path, caplog):
    for name in (".checkpoints", "__MACOSX", "a", "b\n", "c"):
        (tmp_path / name).mkdir()
    for name in (".checkpoints/x.png", "a/._x.png", "a/x.png", "c/x.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images = ImageFolder(tmp_path, 8)
    assert [str(path.relative_to(tmp_path)) for path in images.paths] == ["a/x.png", "c/x.png"]
    assert (images.labels, images.num_classes) == ([0, 2], 3)
    assert r"1 of the sub-folders of" in caplog.text
    assert r"hold no images: [b\n]" in caplog.text


def cut(path):
    Image.new("RGB", (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def of_size(path, width, height):
    """Write an image whose head says a size."""
    Image.new("1", (8, 8)).save(path, format="BMP")
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", width, height)
    path.write_bytes(content)


def many_scans(path):
    """Write a progressive JPEG whose last scan comes a thousand times, 14 bytes each."""
    Image.new("RGB", (64, 64)).save(path, format="JPEG", progressive=True)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 1000 + content[-2:])


def without_end(path):
    Image.new("RGB", (64, 64)).save(path)
    os.truncate(path, 2**33)  # a file with a hole


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        cut,
        lambda path: path.write_text("text"),
        os.mkfifo,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        lambda path: Image.new("RGB", (1, 5000)).save(path),
        lambda path: Image.new("F", (64, 64)).save(path, format="TIFF"),
        lambda path: of_size(path, 20_000, 20_000),
        lambda path: of_size(path, 10_000, 9_500),
        many_scans,
        without_end,
    ],
    ids=[
        "empty",
        "cut short",
        "text",
        "pipe",
        "folder",
        "device",
        "program",
        "thin",
        "floats",
        "huge",
        "large",
        "scans",
        "endless",
    ],
)
def test_what_is_no_image_is_named_and_counted(tmp_path, caplog, write):
    (tmp_path / "class").mkdir()
    write(tmp_path / "class" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "class" / "b.png")
    images = ImageFolder(tmp_path, 32)
    assert images.read(0) is None
    assert images.unreadable == ["class/a.png"]
    assert "a.png" in caplog.text
    assert torch.equal(images.read_next(0)[0], images.read(1))
