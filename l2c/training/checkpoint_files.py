"""The checkpoints in a run's folder: the newest whole one, and those that are in its way."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from l2c.io.names import shown
from l2c.training.checkpoints import mark_of, read_checkpoint

LAST, BEFORE_DECAY = "last.ckpt", "before_decay.ckpt"
STEP = re.compile(r"(?:routers-|epoch=\d+-)step=(\d+)\.ckpt")  # of a step's, which the next one replaces
ASIDE = ".aside"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return what has the name of a run's checkpoint in its folder, whatever it is: the last one, then the newest."""
    found = [Path(entry.path) for entry in os.scandir(folder)] if folder.is_dir() else []
    steps = sorted((path for path in found if STEP.fullmatch(path.name)), key=_step, reverse=True)
    named = (path for name in (LAST, BEFORE_DECAY) for path in found if path.name == name)
    return sorted([*named, *steps], key=lambda path: (path.name != LAST, path.name == BEFORE_DECAY))


def _step(path: Path) -> int:
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def newest_whole(folder: Path) -> Path | None:
    """Return the checkpoint of the most steps that can be read, of those in a run's folder; None where there is none.

    A run that is killed while it writes leaves the one before, or one of the step that is not the last one yet.

    Raises:
        ValueError: if none of those there can be read; the message says what is wrong with the first.

    """
    best, most, reasons = None, -1, []
    for path in checkpoints_in(folder):
        if best is not None and (_step(path) <= most or path.name == BEFORE_DECAY):
            continue
        try:
            step = read_checkpoint(path)["global_step"]
        except (ValueError, OSError) as error:
            reasons.append(str(error))
            continue
        if step > most:
            best, most = path, step
    if best is None and reasons:
        more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
        raise ValueError(
            f"{shown(folder, 300)} holds no checkpoint that is whole: {reasons[0]}{more}; or choose another folder "
            "with hydra.run.dir=PATH to start anew"
        )
    return best


def set_aside(folder: Path, resumed: Path) -> None:
    """Make room for the checkpoints of a run that goes on from one of those in its folder.

    What is of a later step, or has the name of a checkpoint but is none or is damaged, gets another name, which is
    said on stderr.
    """
    most = read_checkpoint(resumed)["global_step"]
    for path in checkpoints_in(folder):
        whole = path.is_file() and not path.is_symlink() and mark_of(path, check=True) is not None
        if path.name == resumed.name or (whole and _step(path) <= most):
            continue
        other = free_name(path)
        path.rename(other)
        why = "is of a later step" if whole else "is no whole checkpoint"
        sys.stderr.write(f"{path} {why} and is called {other.name} now; going on from {resumed.name}\n")


def free_name(path: Path) -> Path:
    """Return a name beside a path under which nothing is."""
    names = (path.with_name(f"{path.name}{ASIDE}{number or ''}") for number in range(1000))
    return next(name for name in names if not os.path.lexists(name))


def remove_replaced(folder: Path) -> None:
    """Remove the checkpoints of steps before the last one of a step, which a run that was killed has left."""
    found = [path for path in checkpoints_in(folder) if _step(path) >= 0 and mark_of(path) is not None]
    for path in found[1:]:
        path.unlink(missing_ok=True)
