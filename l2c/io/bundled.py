"""Folders that travel with the package: presets, weights and graphs."""

from __future__ import annotations

from pathlib import Path

from l2c.io.names import near_names


def project_folder(name: str) -> Path:
    """Return `configs` or `checkpoints`: beside this package in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def graph_names() -> list[str]:
    """Return the names of the bundled graphs."""
    return sorted(path.stem for path in project_folder("checkpoints").glob("*.json"))


def bundled_graph(name: str) -> Path:
    """Return the file of a bundled graph, `dit_digits_ddim20` for example.

    Raises:
        FileNotFoundError: there is no such graph; the message names the near ones.

    """
    if name not in graph_names():
        raise FileNotFoundError(
            f"no cache graph {name!r}: neither a file nor a bundled graph; {near_names(name, graph_names())}"
        )
    return project_folder("checkpoints") / f"{name}.json"
