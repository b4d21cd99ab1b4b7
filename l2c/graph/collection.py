"""Files of several cache graphs that belong together, by name, each in the form of a graph's own file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import write_json
from l2c.io.bundled import at_home
from l2c.io.json_fields import as_form, known_fields, parse_file
from l2c.io.names import quoted, shown

VERSION = 1


def write(path: str | Path, form: str, graphs: Mapping[str, CacheGraph]) -> None:
    """Write one JSON file with all graphs; it appears whole or not at all.

    Args:
        path: the file.
        form: its field `format`.
        graphs: graphs by name.

    Raises:
        ValueError: if a graph has a correction, which lies in a file beside its own.
        OSError: if the folder cannot be made or written.

    """
    corrected = next((name for name, graph in graphs.items() if graph.correction is not None), None)
    if corrected is not None:
        raise ValueError(f"the graph of {corrected} has a correction; save each graph in a file of its own")
    content = {name: json.loads(graph.to_json()) for name, graph in graphs.items()}
    write_json(path, {"format": form, "version": VERSION, "graphs": content}, ensure_ascii=False)


def read(path: str | Path, form: str, what: str, *, most: int) -> dict[str, CacheGraph]:
    """Read and validate a file that `write` wrote.

    Args:
        path: the file.
        form: its field `format`.
        what: what it holds, in words.
        most: graphs that it may hold.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold such graphs, or one of them is damaged.

    """
    name, path = shown(path, 300), at_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {name}; .save writes such files")
    with as_form(path, form):
        content = parse_file(path)
        found, graphs = (content.get("format"), content.get("graphs")) if isinstance(content, dict) else (None, None)
        if found != form or not isinstance(graphs, dict):
            raise ValueError(
                f"{name} holds no {what}: format is {quoted(found)}, must be {form!r}; give a file that .save wrote"
            )
        if content.get("version") != VERSION:
            raise ValueError(
                f"{name} is of version {quoted(content.get('version'))}, this package reads version {VERSION}; make "
                "it anew, or take the package that wrote it"
            )
    known_fields(content, ("format", "version", "graphs"))
    if not 0 < len(graphs) <= most:
        raise ValueError(f"{name} holds {len(graphs)} graphs, must be 1 to {most}; write it again with fewer")
    read_ones: dict[str, CacheGraph] = {}
    for key, graph in graphs.items():
        try:
            read_ones[key] = CacheGraph.from_json(json.dumps(graph), folder=path.parent)
        except ValueError as error:
            raise ValueError(f"{name}, the graph of {shown(key)}: {error}") from error
    return read_ones
