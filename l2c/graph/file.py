"""The JSON file of a cache graph; `cache_graph.schema.json` beside this module describes the same form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from l2c.graph.checks import check_counts
from l2c.graph.correction_file import CorrectionFile
from l2c.graph.fields import GraphFields
from l2c.graph.given import plain_table
from l2c.graph.predictor import FITTED, HOLD, WEIGHTED
from l2c.graph.statistics import COUNTED, statistics_of
from l2c.io.atomic import write_text
from l2c.io.bundled import at_home, bundled_graph
from l2c.io.digests import DIGEST, check_sealed, sealed
from l2c.io.json_fields import as_form, items, known_fields, member, read_text
from l2c.io.names import quoted, shown
from l2c.io.numbers import finite_number

FORMAT = "l2c-cache-graph"
VERSION = 1
FIELDS = {
    *("format", "version", "model", "sampler", "routed", "reuse", "slopes", "weights", "rows"),
    *("correction", "provenance", "statistics", DIGEST),
}
OF_MODEL = ("name", "fingerprint", "layers")
OF_SAMPLER = ("solver", "options", "num_evaluations", "timesteps", "guidance")
OF_GUIDANCE = ("mode", "scale", "options")
NUMBER = (int, float)

Graph = TypeVar("Graph", bound=GraphFields)
Made = TypeVar("Made", covariant=True)


class FromJson(Protocol[Made]):
    """Makes a graph of a file's text."""

    def __call__(self, text: str, *, folder: Path) -> Made:
        """Return the graph; a correction that it names lies in `folder`."""


def to_json(graph: GraphFields) -> str:
    """Return the file's text.

    Raises:
        ValueError: if provenance or measured figures hold what JSON cannot say (NaN, objects).

    """
    assert graph.routed is not None
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": graph.model, "fingerprint": graph.fingerprint, "layers": list(graph.layers)},
        "sampler": {
            "solver": graph.solver,
            "options": dict(graph.solver_options),
            "num_evaluations": graph.num_evaluations,
            "timesteps": list(graph.timesteps),
            "guidance": {"mode": graph.guidance, "scale": graph.cfg_scale}
            | ({"options": dict(graph.guidance_options)} if graph.guidance_options else {}),
        },
        "routed": list(graph.routed),
        "rows": ["".join("1" if bit else "0" for bit in row) for row in graph.rows],
        **({"reuse": list(graph.reuse)} if set(graph.reuse) != {HOLD} else {}),
        **({"slopes": list(map(list, graph.slopes))} if FITTED in graph.reuse else {}),
        **({"weights": [[list(w) for w in row] for row in graph.weights]} if WEIGHTED in graph.reuse else {}),
        **({"correction": graph.correction.to_json()} if graph.correction is not None else {}),
        "provenance": dict(graph.provenance),
        "statistics": statistics_of(graph),
    }
    try:
        return json.dumps(sealed(content, allow_nan=False), indent=1, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the graph's provenance or measured figures cannot be written as JSON: {error}; give finite numbers, "
            "text, lists and dicts"
        ) from error


def save(graph: GraphFields, path: str | Path) -> None:
    """Write a graph, its correction beside it; see `CacheGraph.save`."""
    to_json(graph)  # refuses before anything is written
    if graph.correction is not None:
        graph = replace(graph, correction=graph.correction.beside(Path(path)))
    write_text(path, to_json(graph))


def load(from_json: FromJson[Graph], path: str | Path) -> Graph:
    """Read a graph of a file, or a bundled one by its name; see `CacheGraph.load`.

    Args:
        from_json: makes the graph of the file's text and of the folder of its correction, `CacheGraph.from_json`.
        path: the file or name.

    """
    if isinstance(path, str) and path.lstrip().startswith("{"):
        raise ValueError("a path is wanted, got the text of a graph; CacheGraph.from_json reads it")
    found = at_home(path)
    if found.is_dir():  # of a run
        found /= "cache_graph.json"
        if not found.is_file():
            raise ValueError(f"{shown(path, 300)} is a folder without a cache_graph.json; give a graph's file")
    if not found.exists():
        found = bundled_graph(str(path))
    with as_form(found, FORMAT):
        content = read_text(found)
        try:
            return from_json(content, folder=found.parent)
        except ValueError as error:
            raise ValueError(f"{shown(found, 300)}: {error}") from error


def fields_of(content: Any, folder: Path) -> dict[str, Any]:
    """Return the content of a file as arguments of `CacheGraph`.

    Args:
        content: the file's JSON.
        folder: folder of a correction that the graph names.

    Raises:
        ValueError: if it is of another format or version, or has missing, unknown or wrong fields.

    """
    _check_format(content)
    model = member(content, "model", dict)
    sampler = member(content, "sampler", dict)
    guidance = member(sampler, "guidance", dict, "sampler.guidance")
    options = member(sampler, "options", dict, "sampler.options")
    for name, known, where in (
        (model, OF_MODEL, "model"),
        (sampler, OF_SAMPLER, "sampler"),
        (guidance, OF_GUIDANCE, "sampler.guidance"),
    ):
        known_fields(name, known, where)
    # Before anything is done for each of them.
    check_counts(len(member(content, "rows", list)), len(member(model, "layers", list, "model.layers")))
    rows = _rows(content)
    timesteps = items(sampler, "timesteps", NUMBER, "sampler.timesteps")
    declared = member(sampler, "num_evaluations", int, "sampler.num_evaluations")
    if declared != len(rows) and 0 < len(rows) == len(timesteps):
        raise ValueError(f"sampler.num_evaluations is {declared}, but there are {len(rows)} rows; say {len(rows)}")
    statistics = member(content, "statistics", dict)
    return {
        "rows": rows,
        "layers": tuple(items(model, "layers", str, "model.layers")),
        "timesteps": tuple(timesteps),
        "model": member(model, "name", str, "model.name"),
        "solver": member(sampler, "solver", str, "sampler.solver"),
        "routed": _routed(content),
        "reuse": _reuse(content, len(rows)),
        "slopes": _slopes(content),
        "weights": _weights(content),
        "correction": _correction(content, folder),
        "fingerprint": member(model, "fingerprint", (str, type(None)), "model.fingerprint"),
        "solver_options": {
            name: finite_number(f"sampler.options.{name}", member(options, name, NUMBER, f"sampler.options.{name}"))
            for name in options
        },
        "guidance": member(guidance, "mode", (str, type(None)), "sampler.guidance.mode"),
        "cfg_scale": member(guidance, "scale", (*NUMBER, type(None)), "sampler.guidance.scale"),
        "guidance_options": plain_table("sampler.guidance.options", guidance.get("options", {})),
        "provenance": member(content, "provenance", dict),
        "measured": {name: value for name, value in statistics.items() if name not in COUNTED},
    }


def check_content(content: Mapping[str, Any]) -> None:
    """Refuse content that differs from its digest; checked last, because the message of a wrong field says more.

    Raises:
        ValueError: if the digest in it is another one.

    """
    check_sealed(
        content,
        "copy it again; if you edited it, delete the field: l2c.CacheGraph.load(PATH).save(PATH) writes it anew",
    )


def _check_format(content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = quoted(content.get("format") if isinstance(content, dict) else type(content).__name__)
        raise ValueError(
            f"not a cache graph: format is {got}, must be {FORMAT!r}; give the cache_graph.json of a run"
        )
    version = content.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(
            f"cache graph version {quoted(version)} is unknown, this package reads version {VERSION}; "
            "update l2c or export the graph again"
        )
    known_fields(content, FIELDS)


def _rows(content: Mapping[str, Any]) -> tuple[tuple[bool, ...], ...]:
    rows = member(content, "rows", list)
    for e, row in enumerate(rows):
        if not isinstance(row, str) or set(row) - {"0", "1"}:
            raise ValueError(f"row {e} must be a string of 0 (reuse) and 1 (compute), got {quoted(row, 40)}")
    return tuple(tuple(bit == "1" for bit in row) for row in rows)


def _routed(content: Mapping[str, Any]) -> tuple[int, ...] | None:
    if "routed" not in content:
        return None
    routed = items(content, "routed", int, "routed")
    if len(set(routed)) != len(routed):
        raise ValueError("routed names an evaluation twice; name each once")
    return tuple(routed)


def _reuse(content: Mapping[str, Any], count: int) -> tuple[str, ...]:
    if "reuse" not in content:
        return ()
    reuse = items(content, "reuse", str, "reuse")
    if not reuse:
        raise ValueError(f"reuse has 0 entries, but the graph has {count} rows; give one per row, or leave it out")
    return tuple(reuse)


def _slopes(content: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    if "slopes" not in content:
        return ()
    rows = items(content, "slopes", list, "slopes")
    return tuple(tuple(items({"slopes": row}, "slopes", NUMBER, f"slopes[{e}]")) for e, row in enumerate(rows))


def _weights(content: Mapping[str, Any]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    if "weights" not in content:
        return ()
    found = []
    for e, row in enumerate(items(content, "weights", list, "weights")):
        sets = items({"weights": row}, "weights", list, f"weights[{e}]")
        found.append(
            tuple(
                tuple(items({"weights": weights}, "weights", NUMBER, f"weights[{e}][{i}]"))
                for i, weights in enumerate(sets)
            )
        )
    return tuple(found)


def _correction(content: Mapping[str, Any], folder: Path) -> CorrectionFile | None:
    if "correction" not in content:
        return None
    return CorrectionFile.from_json(member(content, "correction", dict), folder)
