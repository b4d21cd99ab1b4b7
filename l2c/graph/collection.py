"""Files of several cache graphs that belong together, by name, each in the form of a graph's own file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import table
from l2c.io.atomic import write_json
from l2c.io.bundled import at_home
from l2c.io.json_fields import as_form, known_fields, parse_file
from l2c.io.names import quoted, shown

VERSION = 1
FORMAT = "l2c-cache-graphs"
MOST = 16  # denoisers of a pipeline


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


class CacheGraphs(Mapping[str, CacheGraph]):
    """A cache graph for each denoiser of a pipeline, by its name there (`transformer`, `transformer_2`).

    Each has rows for the evaluations that its denoiser makes, and no others.

    Args:
        graphs: the graphs by the denoiser's name.

    Raises:
        ValueError: if it is no mapping from names to cache graphs.

    """

    def __init__(self, graphs: Mapping[str, CacheGraph]) -> None:
        self._graphs = dict(table("graphs", graphs))
        if not self._graphs:
            raise ValueError(
                "graphs is empty; give a cache graph by the name of each denoiser, {'transformer': graph}"
            )
        for name, graph in self._graphs.items():
            if not isinstance(name, str) or not isinstance(graph, CacheGraph):
                raise ValueError(
                    f"graphs must be cache graphs by the name of a denoiser, got {quoted(graph)} for {quoted(name)}"
                )

    def __getitem__(self, name: str) -> CacheGraph:
        return self._graphs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._graphs)

    def __repr__(self) -> str:
        return f"CacheGraphs({self._graphs!r})"

    def __len__(self) -> int:
        return len(self._graphs)

    def summary(self) -> str:
        """Return the summaries of the graphs, for people."""
        return "\n".join(f"{name}: {graph.summary()}" for name, graph in self._graphs.items())

    def save(self, path: str | Path) -> None:
        """Write one JSON file with all graphs; it appears whole or not at all.

        Raises:
            ValueError: if a graph has a correction; save such a graph in a file of its own.
            OSError: if the folder cannot be made or written.

        """
        write(path, FORMAT, self._graphs)

    @classmethod
    def load(cls, path: str | Path) -> CacheGraphs:
        """Read and validate a file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file does not hold the graphs of a pipeline, or one of them is damaged.

        """
        return cls(read(path, FORMAT, "graphs of a pipeline", most=MOST))
