"""The file beside a cache graph that corrects what it reuses: named in the graph, recognised by its digest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2c.io.atomic import replacing
from l2c.io.digests import sha256_of
from l2c.io.json_fields import form_of, known_fields, member
from l2c.io.names import quoted, shown

SUFFIX = ".safetensors"
FORMAT = "l2c-scale-shift"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NAME = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class CorrectionFile:
    """Path and digest of a graph's correction.

    Attributes:
        path: the file, in the graph's own folder.
        fingerprint: SHA-256 of its bytes, `sha256:...`.

    """

    path: Path = field(compare=False)
    fingerprint: str

    @classmethod
    def of(cls, path: str | Path) -> CorrectionFile:
        """Return the description of an existing file."""
        return cls(Path(path), f"sha256:{sha256_of(path)}")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], folder: Path) -> CorrectionFile:
        """Read the graph's field `correction`.

        Raises:
            ValueError: if a part is missing or unknown, or the name is not that of a file in the graph's folder.

        """
        known_fields(content, ("file", "fingerprint"), "correction")
        name = member(content, "file", str, "correction.file")
        if not NAME.fullmatch(name):
            raise ValueError(f"correction.file must be the name of a file beside the graph, got {quoted(name)}")
        fingerprint = member(content, "fingerprint", str, "correction.fingerprint")
        if not DIGEST.fullmatch(fingerprint):
            raise ValueError(
                f"correction.fingerprint must be 'sha256:' and 64 hexadecimal digits, got {quoted(fingerprint)}"
            )
        return cls(folder / name, fingerprint)

    def to_json(self) -> dict[str, str]:
        """Return the graph's field `correction`."""
        return {"file": self.path.name, "fingerprint": self.fingerprint}

    def check(self) -> None:
        """Refuse a file that is missing or another one than the graph was made with.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another file.

        """
        if not self.path.is_file():
            raise FileNotFoundError(
                f"the graph's correction {shown(self.path, 300)} is missing; copy it beside the graph, or make both "
                "anew with l2c correct"
            )
        got = CorrectionFile.of(self.path).fingerprint
        if got != self.fingerprint:
            raise ValueError(
                f"{shown(self.path, 300)} does not belong to this graph: its digest is {got[:19]}..., the graph "
                f"names {self.fingerprint[:19]}...; take the two files that were written together"
            )

    def beside(self, graph: Path) -> CorrectionFile:
        """Copy the file beside a graph that is about to be written, under a name like the graph's; return the copy.

        For `name.json` that is `name.safetensors`, or `name.correction.safetensors` where a file that is no
        correction has the first name (weights, for one).

        Raises:
            ValueError: if both names belong to other files.

        """
        for suffix in (SUFFIX, f".correction{SUFFIX}"):
            target = graph.with_suffix(suffix)
            if target.exists() and self.path.exists() and target.samefile(self.path):
                return CorrectionFile(target, self.fingerprint)
            if not target.exists() or is_correction(target):
                self.check()
                with replacing(target) as temporary:
                    shutil.copyfile(self.path, temporary)
                return CorrectionFile(target, self.fingerprint)
        raise ValueError(
            f"{shown(target, 300)} exists and is no correction, so the graph's correction is not written over it; "
            "save the graph under another name"
        )


def is_correction(path: Path) -> bool:
    """Return whether a file is a correction that l2c wrote, by the header of its safetensors form."""
    return form_of(path) == FORMAT
