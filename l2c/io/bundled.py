"""Folders: of what travels with the package (presets, weights, graphs), of the user, of what can be made again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from l2c.io.names import near_names, quoted, shown


def at_home(path: str | Path) -> Path:
    """Return a path that a user gives, `~` at its begin standing for the home folder.

    Raises:
        ValueError: if it is no path, there is no such home folder, or no file can have such a name.

    """
    if isinstance(path, str) and not path:
        raise ValueError("a path is empty; give the name of a file or folder")
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"a path must be a text or a Path, got {quoted(path)} ({type(path).__name__})")
    try:
        found = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.lstat()
    except RuntimeError as error:
        raise ValueError(f"no home folder is known for {shown(path, 300)}; give the whole path") from error
    except (OSError, ValueError) as error:  # too long, or it holds a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{shown(path)} is no name of a file ({reason}); give a path") from error
    return found


def project_folder(name: str) -> Path:
    """Return `configs` or `checkpoints`: inside the package where it was installed from a wheel, else beside it.

    Raises:
        ValueError: if the package is not in a folder, but in a zip file.

    """
    package = Path(__file__).resolve().parents[1]
    if not package.is_dir():
        raise ValueError(
            f"l2c was imported from inside a file, {shown(package.parent, 300)}, but its presets, weights and graphs "
            "must lie in a folder; unpack the file, or run pip install . in a clone of l2c"
        )
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def own_checkpoint_folder() -> Path:
    """Return the folder where weights of the user's own are kept: `L2C_CHECKPOINTS`, else `checkpoints/` here."""
    return at_home(os.environ.get("L2C_CHECKPOINTS") or "checkpoints")


def cache_folder() -> Path:
    """Return the folder for what can be made again: `L2C_CACHE`, else `l2c` in the user's cache folder."""
    kept = os.environ.get("L2C_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "l2c"
    return at_home(kept)


def checkpoint_folders() -> list[Path]:
    """Return the folders in which weights are looked for: the user's own folders, then the bundled ones."""
    return [own_checkpoint_folder(), Path("checkpoints"), project_folder("checkpoints")]


def graph_names() -> list[str]:
    """Return the names of the bundled graphs."""
    return sorted(path.stem for path in project_folder("checkpoints").glob("*.json"))


def model_names() -> list[str]:
    """Return the names of the model presets."""
    return sorted(path.stem for path in (project_folder("configs") / "model").glob("*.yaml"))


def bundled_graph(name: str) -> Path:
    """Return the file of a bundled graph, `dit_digits_ddim20` for example.

    Raises:
        FileNotFoundError: if there is no such graph; the message names the near ones.

    """
    if name not in graph_names():
        raise FileNotFoundError(
            f"no cache graph at {shown(name, 300)}: neither a file nor a bundled graph; make one with "
            f"l2c train or l2c graph; {near_names(name, graph_names())}"
        )
    return project_folder("checkpoints") / f"{name}.json"
