"""The folder of a training run: one run at a time, nothing of an earlier one among its files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from l2c.data.processes import is_first_process
from l2c.io.atomic import check_writable, sweep, write_json
from l2c.io.bundled import at_home
from l2c.io.digests import sha256_of
from l2c.io.folder_lock import locked
from l2c.io.json_fields import parse_file
from l2c.io.names import counted
from l2c.report.own_results import check_results, is_ours
from l2c.training.checkpoint_files import checkpoints_in, newest_whole, remove_replaced, set_aside
from l2c.training.checkpoints import mark_of

RECORD = "run.json"
RUNNING, FINISHED = "running", "finished"
METRICS = ("metrics/version_*/metrics.csv", "metrics/version_*/hparams.yaml")  # as Lightning's CSVLogger writes them


def resume_from(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to continue from, not yet checked against this run.

    Args:
        resume: a path; `auto` for the folder's newest whole one, if any; None = start anew.
        folder: folder of the run.

    Raises:
        ValueError: if the folder holds checkpoints, of which none is whole.

    """
    if resume is None:
        return None
    return newest_whole(folder) if resume == "auto" else at_home(resume)


@contextmanager
def claimed(
    folder: Path, settings: Mapping[str, Any], *, resumed: Path | None, results: Sequence[str] = ()
) -> Iterator[None]:
    """Hold a run's folder while it trains; `run.json` says whether the run is still going or finished.

    Temporary files that a killed run left are removed. Without resume, the checkpoints, metrics and results that a
    finished run wrote are replaced, which is said on stderr; those of an unfinished run are not, nor is what is none
    of theirs.

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
        if own and resumed is not None:
            before = _recorded(folder)
            _check_unchanged(folder, before, [name for name in results if (folder / name).is_file()])
            set_aside(folder, resumed)
            kept = before.get("kept", [])
        else:
            kept = _make_room(folder, results)
        record = {"process": os.getpid(), "settings": dict(settings), "kept": kept}
        write_json(folder / RECORD, {"state": RUNNING, **record})
        yield
        remove_replaced(folder)
        written = [name for name in (*_named(folder, results), *_metrics(folder)) if name not in kept]
        files = {name: _digest(folder / name) for name in written}
        write_json(folder / RECORD, {"state": FINISHED, **record, "files": files})


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a training run."""
    return is_ours(folder / RECORD)


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says of the folder's last run; empty where there was none."""
    record = dict(parse_file(folder / RECORD)) if is_run(folder) else {}
    kinds = {"files": dict, "kept": list}  # which earlier versions did not write
    return {name: value for name, value in record.items() if isinstance(value, kinds.get(name, object))}


def _named(folder: Path, results: Sequence[str]) -> list[str]:
    """Return the names of the files that a run replaces, of those that are there."""
    names = [*(path.name for path in checkpoints_in(folder)), "config.yaml", *results]
    return [name for name in names if (folder / name).is_file()]


def _metrics(folder: Path) -> list[str]:
    """Return the names of the files of metrics that are there."""
    return [path.relative_to(folder).as_posix() for pattern in METRICS for path in sorted(folder.glob(pattern))]


def _digest(path: Path) -> str:
    """Return what tells a file from others: a checkpoint says its digest itself."""
    return (mark_of(path) if path.suffix == ".ckpt" else None) or sha256_of(path)


def _check_unchanged(folder: Path, record: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse files that a run would replace and that are not those that the finished one wrote."""
    if record.get("state") != FINISHED:
        return
    files = record.get("files")  # earlier versions kept no account
    for name in names:
        changed = name.endswith(".ckpt") and mark_of(folder / name) is None
        if changed if files is None else files.get(name) != _digest(folder / name):
            raise ValueError(
                f"{folder / name} is not what the finished run in that folder wrote, and would be replaced; move it "
                "away, or choose another folder with hydra.run.dir=PATH"
            )


def _make_room(folder: Path, results: Sequence[str]) -> list[str]:
    """Remove what a finished run wrote; refuse to remove an unfinished one's, or what is none of its files.

    Metrics that others wrote, or changed, stay: a run numbers its own after them.

    Returns:
        the names of the metrics that stay.

    """
    record, checkpoints, there = _recorded(folder), checkpoints_in(folder), _named(folder, results)
    finished = record.get("state") == FINISHED
    if checkpoints and not finished:
        raise ValueError(
            f"{folder} holds {counted(len(checkpoints), 'checkpoint')} of an unfinished run; say resume=auto to go "
            "on with it, choose another folder with hydra.run.dir=PATH, or move them away"
        )
    if odd := [path for path in checkpoints if path.is_symlink() or not path.is_file()]:
        raise ValueError(f"{odd[0]} is no file, where the run's checkpoint would be; move it away")
    _check_unchanged(folder, record, there)
    if finished:
        sys.stderr.write(f"{folder} holds a finished run; its checkpoints, metrics and results are replaced\n")
    for name in there:
        if name != "config.yaml":
            (folder / name).unlink(missing_ok=True)
    kept, before, files = [], record.get("kept"), record.get("files", {})
    for name in _metrics(folder):
        ours = before is not None and name not in before
        if ours and not (finished and files.get(name) != _digest(folder / name)):
            (folder / name).unlink()
        else:
            kept.append(name)
    for place in sorted(folder.glob("metrics/version_*")):
        with suppress(OSError):  # files are in it, or it is one
            place.rmdir()
    return kept
