"""Which files in a run folder are earlier results of this package; others are never overwritten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from l2c.io.names import shown

HEAD = 2**20  # bytes of a file that are looked at
# What commands write first, and names in it that tell it from other files.
KEYS = {
    "run.json": {"state", "process", "settings"},
    "cache_graph.json": {"format", "version"},
    "samples.json": {"format", "version"},
    "results.json": {"command", "machine", "results"},
    "scores.json": {"command", "samples", "reference"},
    "samples.safetensors": {"images"},
    "settings.json": {"made_by", "settings"},
}
DRAWN_BY, NEAR = "drawn by l2c", 4096  # what pictures and pages of ours say, in their first bytes or their last
DRAWN = {".png": "Comment", ".svg": "Description", ".pdf": "Subject", ".html": "generator"}  # and under which name


def check_results(folder: Path, patterns: Sequence[str]) -> None:
    """Refuse a folder in which results would overwrite files that are no earlier results.

    Args:
        folder: folder of the run, which may not be there yet.
        patterns: names of the files that the run will write, as `Path.glob` takes them.

    Raises:
        ValueError: if one of them is there and is none of ours, or no file; the message names it.

    """
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    kept = [path for path in found if path.parent == folder and path.exists() and not path.is_file()]
    if kept:
        raise ValueError(
            f"{shown(kept[0], 300)} is no file, and the run writes one of that name; move it away, or choose another "
            "folder with hydra.run.dir=PATH"
        )
    found = [path for path in found if path.is_file() and path.stat().st_size]
    if not found:
        return
    ours = any(is_ours(folder / name) for name in KEYS)
    wrong = [path for path in found if not ours or not is_ours(path)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise ValueError(
            f"{shown(wrong[0], 300)}{more} would be overwritten, which is no result of an earlier run, or one of an "
            "older l2c, which did not mark it; move it away, or choose another folder with hydra.run.dir=PATH"
        )


def is_ours(path: Path) -> bool:
    """Say from the content of a file whether it is a result of this package; True where only its folder tells."""
    if path.name not in KEYS and path.suffix not in DRAWN:
        return True
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        if path.suffix in DRAWN:
            return is_drawn(path)
        with path.open("rb") as file:
            head = file.read(HEAD)
        if path.suffix == ".safetensors":
            size = int.from_bytes(head[:8], "little")
            content = json.loads(head[8 : 8 + size])
        else:
            content = json.loads(path.read_bytes())
        return isinstance(content, dict) and KEYS[path.name] <= content.keys()
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def is_drawn(path: Path) -> bool:
    """Say whether a picture or a page says that this package has drawn it; what others drew with Matplotlib does not.

    Raises:
        OSError: if it cannot be read.

    """
    with path.open("rb") as file:
        leading = file.read(NEAR)
        file.seek(max(0, path.stat().st_size - NEAR))
        return DRAWN_BY.encode() in leading + file.read(NEAR)
