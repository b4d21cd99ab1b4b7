"""About 3,100 colour pictures of 32 x 32 in 10 classes: Microsoft's Fluent emoji, in [-1, 1].

The pictures come from the npm package `@lobehub/fluent-emoji-3d`, the classes from `emoji-datasource`, both MIT.
Nothing of the packages is executed; pictures of signs are left out.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from l2c.io.atomic import output_file, replacing
from l2c.io.bundled import cache_folder
from l2c.io.download import download
from l2c.io.memory import out_of_memory

IMAGE_SHAPE = (3, 32, 32)
CLASSES = ("face", "heart", "hand", "person", "nature", "food", "vehicle", "place", "object", "flag")
MAX_MEMBER_BYTES = 1 << 24
EMOJI_FILE = "emoji_32.npz"


@dataclass(frozen=True)
class Package:
    """A packed npm package: where it is published and the digest that it must have."""

    url: str
    sha256: str


PICTURES = Package(
    "https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
NAMES = Package(
    "https://registry.npmjs.org/emoji-datasource/-/emoji-datasource-16.0.0.tgz",
    "2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9",
)


@dataclass(frozen=True)
class Emoji:
    """The pictures.

    Attributes:
        images: (N, 3, 32, 32), unsigned bytes, on white.
        labels: (N,), in 0..9, places in `CLASSES`.
        families: (N,), the same number for the variants of one emoji in several skin tones.
        toned: (N,), whether a picture is a variant in a skin tone, not the yellow one.

    """

    images: Tensor
    labels: Tensor
    families: Tensor
    toned: Tensor

    def where(self, chosen: Tensor) -> Emoji:
        """Return the pictures that are chosen: (N,) bools, or indices."""
        return Emoji(self.images[chosen], self.labels[chosen], self.families[chosen], self.toned[chosen])


def class_of(category: str, subcategory: str) -> int | None:
    """Return the class of an emoji by its category and subcategory in `emoji-datasource`; None for signs."""
    name = None
    if category == "Smileys & Emotion":
        name = None if subcategory == "emotion" else "heart" if subcategory == "heart" else "face"
    elif category == "People & Body":
        name = "hand" if subcategory.startswith(("hand", "body")) else "person"
    elif category == "Travel & Places":
        name = "vehicle" if subcategory.startswith("transport") else "place"
        name = "object" if subcategory == "time" else name
    else:
        name = {
            "Animals & Nature": "nature",
            "Food & Drink": "food",
            "Activities": "object",
            "Objects": "object",
            "Flags": "flag",
        }.get(category)
    return None if name is None else CLASSES.index(name)


def _key(code_points: str) -> str:
    """Return code points without the mark that asks for a colour picture, which not all names have."""
    return "-".join(part for part in code_points.lower().split("-") if part != "fe0f")


def _families(entries: list[dict[str, Any]]) -> dict[str, tuple[int, int, bool]]:
    """Return (label, family, toned) by the code points of a picture."""
    found = {}
    for family, entry in enumerate(entries):
        label = class_of(entry["category"], entry["subcategory"])
        if label is None:
            continue
        found[_key(entry["unified"])] = (label, family, False)
        for variant in entry.get("skin_variations", {}).values():
            found[_key(variant["unified"])] = (label, family, True)
    return found


def _on_white(content: bytes) -> npt.NDArray[np.uint8]:
    """Return a picture (3, 32, 32) on white, scaled down by Lanczos."""
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
    return np.asarray(flat).transpose(2, 0, 1)


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None or member.size > MAX_MEMBER_BYTES:
        raise ValueError(
            f"{member.name} of {archive.name!s} is no file of at most {MAX_MEMBER_BYTES} bytes; fetch it again"
        )
    return file.read()


def pack_emoji(pictures: Path, names: Path, output: Path) -> Path:
    """Read the two packed packages and write the pictures as one `.npz`; return its path.

    Args:
        pictures: `fluent-emoji-3d-1.1.0.tgz`.
        names: `emoji-datasource-16.0.0.tgz`.
        output: the file to write, about 5 MB.

    Raises:
        ValueError: if a package cannot be read or holds no pictures.

    """
    try:
        with tarfile.open(names) as archive:
            known = _families(json.loads(_member(archive, archive.getmember("package/emoji.json"))))
        images, rows, seen = [], [], set()
        with tarfile.open(pictures) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                row = known.get(_key(Path(member.name).stem))
                if row is None or not member.name.endswith(".webp"):
                    continue
                image = _on_white(_member(archive, member))
                if image.tobytes() not in seen:  # some flags are those of another country
                    seen.add(image.tobytes())
                    images.append(image)
                    rows.append(row)
    except (tarfile.TarError, KeyError, json.JSONDecodeError, EOFError) as error:
        raise ValueError(f"{pictures} and {names} cannot be read ({error}); fetch them again") from error
    if not images:
        raise ValueError(f"{pictures} holds no pictures that {names} names; give the packages in this order")
    labels, families, toned = (np.array(column) for column in zip(*rows, strict=True))
    with replacing(output) as temporary:
        np.savez_compressed(temporary, images=np.stack(images), labels=labels, families=families, toned=toned)
    return output


def emoji_path() -> Path:
    """Return the path of the pictures, in the cache folder."""
    return cache_folder() / EMOJI_FILE


def fetch_emoji(pictures: str | Path | None = None, names: str | Path | None = None) -> Path:
    """Make the file of pictures, downloading what is not given; return its path.

    Args:
        pictures: the packed package of the pictures, where it is at hand.
        names: package of the classes.

    Raises:
        OSError: if there is no connection, or no such file.
        ValueError: if a package is not the expected one, or something else is where the file is to be.

    """
    with output_file("the file of emoji", emoji_path(), ours=_is_read) as path:
        found = []
        for package, given in ((PICTURES, pictures), (NAMES, names)):
            target = Path(given) if given is not None else path.parent / Path(package.url).name
            if given is not None and not target.is_file():
                raise FileNotFoundError(f"no package at {target}; give a path, or leave it out to download it")
            found.append(download(package.url, target, sha256=package.sha256))
        return pack_emoji(found[0], found[1], path)


def _is_read(path: Path) -> bool:
    try:
        return len(emoji(path).labels) > 0
    except ValueError:
        return False


def emoji(path: str | Path | None = None) -> Emoji:
    """Return the pictures from their file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the file is damaged.

    """
    file = Path(path) if path is not None else emoji_path()
    if not file.is_file():
        raise FileNotFoundError(
            f"no emoji at {file}; fetch them with `l2c download-emoji`, or take data=noise, which needs no images"
        )
    try:
        with np.load(file, allow_pickle=False) as content:
            columns = {name: torch.from_numpy(content[name]) for name in ("images", "labels", "families", "toned")}
    except Exception as error:  # numpy and zipfile have an exception for each kind of damage
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}); delete it and fetch the emoji again"
        ) from error
    pictures = Emoji(**columns)
    if not _is_sound(pictures):
        raise ValueError(
            f"{file} is damaged (its arrays are not those of pictures); delete it and fetch the emoji again"
        )
    return pictures


def _is_sound(pictures: Emoji) -> bool:
    """Say whether arrays have the types, shapes and range of pictures and labels."""
    count, labels = pictures.labels.numel(), pictures.labels
    kinds = {"images": torch.uint8, "labels": torch.int64, "families": torch.int64, "toned": torch.bool}
    return (
        count > 0
        and all(getattr(pictures, name).dtype == kind for name, kind in kinds.items())
        and pictures.images.shape == (count, *IMAGE_SHAPE)
        and labels.shape == pictures.families.shape == pictures.toned.shape == (count,)
        and 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES)
    )
