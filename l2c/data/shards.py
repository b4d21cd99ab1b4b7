"""Folders of shards: files of tensors, and one manifest that says what they are of.

A shard appears whole or not at all, so that a run which was killed goes on at the first missing one. Each says
of which images and settings it is, so that others are not mixed with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from l2c.io.atomic import sweep, write_json
from l2c.io.digests import DIGEST, check_sealed, digest_of_text, sealed
from l2c.io.json_fields import items, known_fields, member, parse, read_text
from l2c.io.names import differences, quoted, shown
from l2c.io.numbers import whole_number
from l2c.io.tensors import opened, write_tensors

VERSION = 2  # of 1, neither manifest nor shards say of what content they are
VERSIONS = (1, VERSION)
TEXT, OF = "l2c", "of"  # the one text of a shard (several have no order), and what says there of what it is
MOST_IMAGES, MOST_SHARDS, LARGEST_SIDE = 10**10, 10**5, 2**16
M = TypeVar("M", bound="Shards")


class Shards:
    """The manifest of a folder of shards; shard k holds the images k S .. (k + 1) S - 1.

    A kind of shards is a dataclass on this: its fields, `shape`, `num_images` and `shard_size` among them, are what
    the manifest holds.

    """

    FILE: ClassVar[str]
    FORMAT: ClassVar[str]
    WORD: ClassVar[str]  # what the shards hold, and how their files' names begin
    MAKE: ClassVar[str]  # how they are made
    AGAIN: ClassVar[str]  # how they are made anew

    shape: tuple[int, int, int]
    num_images: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """Number of shards of the whole folder."""
        return -(-self.num_images // self.shard_size)

    def images_of(self, shard: int) -> range:
        """Return the numbers of a shard's images."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def path(self, folder: Path, shard: int) -> Path:
        """Return the path of a shard."""
        return folder / f"{self.WORD}-{shard:05d}-of-{self.num_shards:05d}.safetensors"

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the shards that are not there yet."""
        there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        return [k for k in range(self.num_shards) if self.path(folder, k).name not in there]

    def settings_to_agree(self) -> dict[str, Any]:
        """Return the settings that must be equal when a folder is continued, by name."""
        return dict(vars(self))

    @property
    def mark(self) -> str:
        """What a shard says that it is of: a digest of the settings to agree."""
        return digest_of_text(json.dumps([self.FORMAT, self.settings_to_agree()], sort_keys=True))

    def write(self, folder: Path, shard: int, tensors: Mapping[str, Tensor], **said: Any) -> None:
        """Write a shard with its mark, and what else is said of it."""
        write_tensors(self.path(folder, shard), tensors, {TEXT: json.dumps({OF: self.mark, **said})})

    def said(self, path: Path, texts: Mapping[str, str] | None, *, older: bool = True) -> dict[str, Any]:
        """Return what a shard says; refuse one of other images or settings.

        Args:
            path: the shard.
            texts: its texts.
            older: take one that does not say what it is of.

        Raises:
            ValueError: if it says another mark, or none, or what it says cannot be read.

        """
        try:
            said = parse((texts or {}).get(TEXT, "{}"))
        except ValueError as error:
            raise ValueError(f"{shown(path, 300)} is damaged: {error}; {self.AGAIN}") from error
        said = said if isinstance(said, dict) else {}
        mark = said.get(OF)
        if mark != self.mark and not (older and mark is None):
            other = (
                "other images or settings" if mark is not None else "an older l2c, which does not say what it is of"
            )
            raise ValueError(
                f"{shown(path, 300)} is of {other}, so that {self.WORD} would be mixed; delete it, or choose another "
                "folder"
            )
        return said

    def claim(self, folder: Path) -> None:
        """Set a folder aside for these shards; one that holds others already is refused.

        Raises:
            ValueError: if the folder holds shards of other settings or images, or is damaged.
            OSError: if the folder cannot be written.

        """
        self.bounded()
        sweep(folder)
        if not (folder / self.FILE).is_file():
            self._check_marks(folder)
            self.save(folder, once=True)  # another process may be faster
        here, there = self.settings_to_agree(), type(self).load(folder).settings_to_agree()
        if different := differences(there, here):
            raise ValueError(
                f"{folder} holds {self.WORD} with other settings: {different}; continue with the same settings or "
                "choose another folder"
            )
        self._check_marks(folder)

    def _check_marks(self, folder: Path) -> None:
        """Refuse a folder with a shard by the name of one of these that is of other images or settings."""
        missing = set(self.missing(folder))
        for path in (self.path(folder, k) for k in range(self.num_shards) if k not in missing):
            with opened(path, what=self.WORD, again="delete it and run the same again") as file:
                texts = file.metadata()
            self.said(path, texts, older=False)

    def save(self, folder: Path, *, once: bool = False) -> None:
        """Write the manifest, where `once` is true unless one is there."""
        content = sealed({"format": self.FORMAT, "version": VERSION, **vars(self)})
        write_json(folder / self.FILE, content, once=once)

    @classmethod
    def load(cls: type[M], folder: Path) -> M:
        """Read a folder's manifest.

        Raises:
            FileNotFoundError: if there is no manifest.
            ValueError: if the manifest is damaged or of another kind.

        """
        path = folder / cls.FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {cls.WORD} at {shown(folder, 300)}: {cls.FILE} is missing; {cls.MAKE}")
        try:
            content = parse(read_text(path))
            form = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
            if form[0] != cls.FORMAT or type(form[1]) is not int or form[1] not in VERSIONS:
                raise ValueError(f"its format and version are {quoted(form[0])} and {quoted(form[1])}")
            known_fields(content, ("format", "version", DIGEST, *cls.__dataclass_fields__))  # type: ignore[attr-defined]
            made: dict[str, Any] = {
                "shape": _shape(content),
                "num_images": _count(content, "num_images", MOST_IMAGES),
                "shard_size": _count(content, "shard_size", MOST_IMAGES),
                **cls.others(content),
            }
            manifest = cls(**made).bounded()
            check_sealed(content, "copy it again")
            return manifest
        except ValueError as error:
            raise ValueError(f"{shown(path, 300)} is no manifest of {cls.WORD}: {error}; {cls.AGAIN}") from error

    def bounded(self: M) -> M:
        """Return the manifest; refuse one of more shards than any folder has."""
        if self.num_shards > MOST_SHARDS:
            raise ValueError(
                f"{self.num_images} images in shards of {self.shard_size} are more than {MOST_SHARDS} shards; "
                "raise shard_size"
            )
        return self

    @classmethod
    def others(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return a kind's own fields of a manifest, each checked.

        Raises:
            ValueError: if one is missing or of another type.

        """
        raise NotImplementedError


def _shape(content: Mapping[str, Any]) -> tuple[int, int, int]:
    sides = items(content, "shape", int, "shape")
    if len(sides) != 3:
        raise ValueError(f"shape must be of three numbers (C, H, W), got {len(sides)}")
    channels, height, width = (whole_number("shape", side, low=1, high=LARGEST_SIDE) for side in sides)
    return channels, height, width


def _count(content: Mapping[str, Any], name: str, most: int) -> int:
    return whole_number(name, member(content, name, (int, float)), low=1, high=most)
