"""The folder of a training run: one run at a time, nothing of an earlier one among its files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2c.data.share import this_process
from l2c.io.atomic import check_writable, sweep, write_json
from l2c.io.bundled import at_home
from l2c.io.folder_lock import locked
from l2c.report.own_results import check_results, is_ours

RECORD = "run.json"
LAST = "last.ckpt"
RUNNING, FINISHED = "running", "finished"


def resume_from(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to continue from, not yet checked.

    Args:
        resume: a path; `auto` for the folder's last one, if any; None = start anew.
        folder: folder of the run.

    """
    if resume is None:
        return None
    path = folder / LAST if resume == "auto" else at_home(resume)
    return None if resume == "auto" and not path.is_file() else path


def is_first_process() -> bool:
    """Return whether this is the process that writes, of all that torchrun, SLURM or Lightning started."""
    return this_process()[0].index == 0 and all(os.environ.get(n, "0") == "0" for n in ("LOCAL_RANK", "NODE_RANK"))


@contextmanager
def claimed(
    folder: Path, settings: Mapping[str, Any], *, resumed: Path | None, results: Sequence[str] = ()
) -> Iterator[None]:
    """Hold a run's folder while it trains; `run.json` says whether the run is still going or finished.

    Temporary files that a killed run left are removed. Without resume, the checkpoints, metrics and results of a
    finished run are replaced, which is said on stderr; those of an unfinished run are not.

    Args:
        folder: folder of the run.
        settings: settings of the run, kept in `run.json`.
        resumed: the checkpoint that the run goes on from.
        results: names of the files that the run writes beside checkpoints and metrics.

    Raises:
        ValueError: if another process works in the folder, or it holds the checkpoints of an unfinished run, or files
            of such names that no run has written.
        OSError: if it cannot be written.

    """
    if not is_first_process():
        yield
        return
    check_writable(folder / RECORD)
    own = resumed is not None and resumed.parent.resolve() == folder.resolve()  # its checkpoint was looked at
    writes = (RECORD, "config.yaml", *(() if own else ("*.ckpt", "metrics/**/*")), *results)
    with locked(folder):
        check_results(folder, writes)
        if folder.resolve() != Path.cwd():
            sweep(folder)
        if not own:
            _make_room(folder, results)
        _record(folder, RUNNING, settings)
        yield
        _record(folder, FINISHED, settings)


def _record(folder: Path, state: str, settings: Mapping[str, Any]) -> None:
    content = {"state": state, "process": os.getpid(), "settings": dict(settings)}
    write_json(folder / RECORD, content)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a training run."""
    return is_ours(folder / RECORD)


def _make_room(folder: Path, results: Sequence[str]) -> None:
    """Remove what a finished run left; refuse to remove an unfinished one's."""
    checkpoints = sorted(folder.glob("*.ckpt"))
    finished = is_run(folder) and json.loads((folder / RECORD).read_text(encoding="utf-8"))["state"] == FINISHED
    if checkpoints and not finished:
        raise ValueError(
            f"{folder} holds {len(checkpoints)} checkpoints of an unfinished run; say resume=auto to go on with it, "
            "choose another folder with hydra.run.dir=PATH, or delete them"
        )
    if finished:
        sys.stderr.write(f"{folder} holds a finished run; its checkpoints, metrics and results are replaced\n")
    shutil.rmtree(folder / "metrics", ignore_errors=True)
    for path in [*checkpoints, *(folder / name for name in results)]:
        path.unlink(missing_ok=True)
