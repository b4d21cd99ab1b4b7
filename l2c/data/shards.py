"""Folders of shards: files of tensors, and one manifest that says what they are of.

A shard appears whole or not at all, so that a run which was killed goes on at the first missing one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from l2c.io.atomic import replacing, write_json

VERSION = 1
M = TypeVar("M", bound="Shards")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a shard, which appears whole or not at all.

    Raises:
        OSError: if the file cannot be written, or the disk is full.

    """
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


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
        return [k for k in range(self.num_shards) if not self.path(folder, k).is_file()]

    def settings_to_agree(self) -> dict[str, Any]:
        """Return the settings that must be equal when a folder is continued, by name."""
        return dict(vars(self))

    def claim(self, folder: Path) -> None:
        """Make a folder that of these shards; one that holds others already is refused.

        Raises:
            ValueError: if the folder holds shards of other settings, or is damaged.
            OSError: if the folder cannot be written.

        """
        if not (folder / self.FILE).is_file():
            self.save(folder)
            return
        here, there = self.settings_to_agree(), type(self).load(folder).settings_to_agree()
        different = [name for name in here if here[name] != there.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"{folder} holds {self.WORD} with {name} {there.get(name)}, not {here[name]}; continue with the same "
                "settings or choose another folder"
            )

    def save(self, folder: Path) -> None:
        """Write the manifest."""
        write_json(folder / self.FILE, {"format": self.FORMAT, "version": VERSION, **vars(self)})

    @classmethod
    def load(cls: type[M], folder: Path) -> M:
        """Read a folder's manifest.

        Raises:
            FileNotFoundError: if there is no manifest.
            ValueError: if the manifest is damaged or of another kind.

        """
        path = folder / cls.FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {cls.WORD} at {folder}: {cls.FILE} is missing; {cls.MAKE}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content.pop("format"), content.pop("version")) != (cls.FORMAT, VERSION):
                raise ValueError("of another format or version")
            return cls(**{**content, "shape": tuple(content["shape"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of {cls.WORD} ({error}); {cls.AGAIN}") from error
