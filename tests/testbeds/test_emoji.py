"""The file of emoji: what is read from the packages, and what is refused."""

import numpy as np
import pytest
import torch
from emoji_packages import packages_in, packed, webp

from l2c.testbeds.emoji import CLASSES, class_of, emoji, emoji_path, fetch_emoji, pack_emoji


@pytest.fixture
def packages(tmp_path):
    return packages_in(tmp_path)


def test_pictures_are_read_with_their_classes(packages, tmp_path):
    pictures = emoji(pack_emoji(*packages, tmp_path / "emoji.npz"))
    assert pictures.images.shape == (4, 3, 32, 32)
    assert pictures.images.dtype == torch.uint8
    found = sorted(
        zip([CLASSES[c] for c in pictures.labels], pictures.families.tolist(), pictures.toned.tolist(), strict=True)
    )
    assert found == [("face", 0, False), ("hand", 2, False), ("hand", 2, True), ("heart", 1, False)]
    red = pictures.images[pictures.labels == CLASSES.index("heart")][0]
    assert red[:, 16, 16].tolist() == [255, 0, 0]
    assert red[:, 0, 0].tolist() == [255, 255, 255]  # what is transparent becomes white


def test_alike_pictures_count_once(tmp_path, packages):
    twice = packed(
        tmp_path / "twice.tgz", {f"assets/{name}.webp": webp((255, 0, 0, 255)) for name in ("1f600", "2764")}
    )
    assert len(emoji(pack_emoji(twice, packages[1], tmp_path / "emoji.npz")).labels) == 1


def test_classes_follow_the_categories():
    assert class_of("Travel & Places", "transport-air") == CLASSES.index("vehicle")
    assert class_of("Travel & Places", "sky & weather") == CLASSES.index("place")
    assert class_of("Travel & Places", "time") == class_of("Activities", "sport") == CLASSES.index("object")
    assert class_of("People & Body", "person-role") == CLASSES.index("person")
    assert (
        class_of("Symbols", "arrow") is class_of("Smileys & Emotion", "emotion") is class_of("Component", "x") is None
    )


def test_refusals(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"no emoji at .*download-emoji.* take data=noise"):
        emoji()
    with pytest.raises(FileNotFoundError, match=r"no package at nowhere\.tgz; give a path, or leave it out"):
        fetch_emoji(pictures="nowhere.tgz")
    with pytest.raises(ValueError, match="has the SHA-256"):
        fetch_emoji(*packages)
    with pytest.raises(ValueError, match="cannot be read"):
        pack_emoji(packages[0], packages[0], tmp_path / "x.npz")
    none = packed(tmp_path / "none.tgz", {"README.md": b""})
    with pytest.raises(ValueError, match="holds no pictures"):
        pack_emoji(none, packages[1], tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    emoji_path().parent.mkdir(exist_ok=True)
    for damage in (lambda: emoji_path().write_bytes(b"PK"), lambda: np.savez(emoji_path(), images=np.zeros(1))):
        damage()
        with pytest.raises(ValueError, match=r"is damaged .* delete it"):
            emoji()
