"""The file beside a cache graph that corrects what it reuses: named in the graph, recognised by its digest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2c.io.atomic import replacing
from l2c.io.json_fields import member

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class CorrectionFile:
    """Where a graph's correction lies and which file it is.

    Attributes:
        path: the file, in the graph's own folder.
        fingerprint: SHA-256 of its bytes, `sha256:...`.

    """

    path: Path = field(compare=False)
    fingerprint: str

    @classmethod
    def of(cls, path: str | Path) -> CorrectionFile:
        """Return the description of an existing file."""
        return cls(Path(path), f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], folder: Path) -> CorrectionFile:
        """Read the graph's field `correction`.

        Raises:
            ValueError: a part is missing, or the name is not that of a file in the graph's folder.

        """
        name = member(content, "file", str, "correction.file")
        if Path(name).name != name:
            raise ValueError(f"correction.file must be the name of a file beside the graph, got {name!r}")
        return cls(folder / name, member(content, "fingerprint", str, "correction.fingerprint"))

    def to_json(self) -> dict[str, str]:
        """Return the graph's field `correction`."""
        return {"file": self.path.name, "fingerprint": self.fingerprint}

    def check(self) -> None:
        """Refuse a file that is missing or another one than the graph was made with.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another file.

        """
        if not self.path.is_file():
            raise FileNotFoundError(
                f"the graph's correction {self.path} is missing; copy it beside the graph, or make both anew with "
                "scripts/train_scale_shift.py"
            )
        got = CorrectionFile.of(self.path).fingerprint
        if got != self.fingerprint:
            raise ValueError(
                f"{self.path} does not belong to this graph: its digest is {got[:19]}..., the graph names "
                f"{self.fingerprint[:19]}...; take the two files that were written together"
            )

    def beside(self, graph: Path) -> CorrectionFile:
        """Copy the file beside a graph that is about to be written, under the graph's name; return the copy."""
        target = graph.with_suffix(SUFFIX)
        if target.absolute() != self.path.absolute():
            self.check()
            with replacing(target) as temporary:
                shutil.copyfile(self.path, temporary)
        return CorrectionFile(target, self.fingerprint)
