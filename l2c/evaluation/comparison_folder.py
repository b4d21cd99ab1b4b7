"""What a comparison's folder remembers: the settings of all cells, and each cell with what it was measured by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import write_json
from l2c.io.digests import DIGEST, check_sealed, sealed, sha256_of
from l2c.io.json_fields import parse_file
from l2c.io.names import differences, shown
from l2c.io.numbers import finite_number, whole_number
from l2c.io.tensors import digest_of_tensors, opened, write_tensors
from l2c.io.version import code_version
from l2c.report.figures import graph_heatmap, save_figure
from l2c.report.machine import machine
from l2c.report.method_table import Cell
from l2c.report.samples import SampleRow

RECORD, TARGETS = "settings.json", "targets.safetensors"
CELL = {"made_by", "machine", "origin", "cells", "drawn", DIGEST}  # fields of a cell's file
ELSE = "choose another folder with hydra.run.dir=PATH"


@dataclass(frozen=True)
class ComparisonFolder:
    """The folder of a comparison.

    Attributes:
        path: the folder.
        any_version: goes on with what other versions of this package measured.
        measured_by: versions and machines that the cells were measured by that this run reads or measures.

    """

    path: Path
    any_version: bool = False
    measured_by: list[tuple[str, str]] = field(default_factory=list, init=False)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Set the folder aside for a comparison, or go on with the one that it holds.

        Args:
            settings: those that determine every cell.

        Raises:
            ValueError: if it holds a comparison with other settings, or one that another version has measured.

        """
        here = _as_read(settings)
        if not (self.path / RECORD).is_file():
            write_json(self.path / RECORD, {"made_by": code_version(), "settings": here})
            return
        record = parse_file(self.path / RECORD)
        there = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(there, dict):
            raise ValueError(f"{self.path} holds a comparison of which {RECORD} does not say the settings; {ELSE}")
        if different := differences(there, here):
            raise ValueError(f"{self.path} holds a comparison with other settings: {different}; {ELSE}")
        cells = map(_read, sorted((self.path / "cells").glob("*.json")))
        kept = [record, *(cell for cell in cells if cell is not None and "origin" in cell)]
        others = sorted({shown(one.get("made_by", "an earlier version")) for one in kept} - {code_version()})
        if others and not self.any_version:
            raise ValueError(
                f"{self.path} holds cells that l2c {' and '.join(others)} has measured, but this is "
                f"{code_version()}, whose methods or defaults may differ; {ELSE}, or say any_version=true to go on "
                "with them"
            )

    def targets(self, settings: Mapping[str, Any]) -> Tensor | None:
        """Return the images that errors are measured to, kept in the folder; None where there are none.

        Args:
            settings: those that determine every cell.

        Raises:
            ValueError: if they are damaged, changed, or of other settings.

        """
        path, again = self.path / TARGETS, "move it away and run again"
        if not path.exists():
            return None
        with opened(path, what="the images that errors are measured to", again=again) as file:
            images, texts = file.get_tensor("images"), file.metadata() or {}
        try:
            said = json.loads(texts["targets"])
            different, digest = differences(said["settings"], _as_read(settings)), said[DIGEST]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"{shown(path, 300)} does not say of which settings its images are; {again}") from error
        if different:
            raise ValueError(f"{shown(path, 300)} holds images of other settings: {different}; {again}")
        if digest != targets_digest(images):
            raise ValueError(f"{shown(path, 300)} holds other images than were drawn into it; {again}")
        return images

    def keep_targets(self, images: Tensor, settings: Mapping[str, Any]) -> None:
        """Keep the images that errors are measured to, with the settings that made them."""
        said = json.dumps({"settings": _as_read(settings), DIGEST: targets_digest(images)})
        write_tensors(
            self.path / TARGETS, {"images": images}, {"targets": said}
        )  # one text: their order is by chance

    def recall(self, name: str, origin: Mapping[str, Any]) -> list[Cell] | str:
        """Return the cells that were kept under a name, none of a budget out of reach.

        Args:
            name: name of the file.
            origin: all that determines them beside the settings of the comparison.

        Returns:
            the cells; where there are none of that origin the reason, empty where nothing is kept.

        """
        path = self._file(name)
        if not path.is_file():
            return ""
        content = _read(path)
        try:
            if content is None or set(content) != CELL:
                raise ValueError
            check_sealed(content, ELSE)
            cells = [_cell(given, origin["method"]) for given in content["cells"]]
            measured_by = str(content["made_by"]), str(content["machine"])
            different = differences(content["origin"], _as_read(origin))
            drawn = {file: content["drawn"].get(file) for file in _drawn(name)}
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{path.name} is damaged or of an earlier version"
        if different:
            return different
        if changed := [file for file, digest in drawn.items() if self._digest(file) not in (None, digest)]:
            return f"{changed[0]} is not what was drawn of it"
        self.measured_by.append(measured_by)
        return cells

    def keep(self, name: str, origin: Mapping[str, Any], cells: list[Cell]) -> None:
        """Keep cells under a name, with digests of what was drawn of them."""
        self.measured_by.append((code_version(), machine()))
        content: dict[str, Any] = dict(zip(("made_by", "machine"), self.measured_by[-1], strict=True))
        content |= {"origin": _as_read(origin), "cells": list(map(asdict, cells))}
        content["drawn"] = {file: digest for file in _drawn(name) if (digest := self._digest(file)) is not None}
        write_json(self._file(name), sealed(content))

    def forget(self, name: str) -> None:
        """Remove the first cell of a method at a budget, and what was drawn of it."""
        for file in (f"cells/{name}-0.json", *_drawn(f"{name}-0"), f"graphs/{name}.png"):
            (self.path / file).unlink(missing_ok=True)

    def draw(self, name: str, row: SampleRow, graph: CacheGraph | None) -> None:
        """Keep the images of a method at a budget, and its graph if it has one."""
        row.save(self.path / "samples" / f"{name}.safetensors")
        if graph is not None:
            graph.save(self.path / "graphs" / f"{name}.json")
            save_figure(graph_heatmap(graph), self.path / "graphs" / f"{name}.png")

    def drawn(self, name: str) -> tuple[SampleRow | None, CacheGraph | None]:
        """Return the images and the graph that are kept of a method at a budget."""
        row, graph = (self.path / file for file in _drawn(f"{name}-0"))
        return (
            SampleRow.load(row) if row.is_file() else None,
            CacheGraph.load(graph) if graph.is_file() else None,
        )

    @property
    def machines(self) -> str:
        """The machines of this run's cells, one after the other; this one if there are none."""
        return "; ".join(dict.fromkeys(place for _, place in self.measured_by)) or machine()

    @property
    def versions(self) -> str:
        """A sentence on the versions that measured this run's cells; empty where it was this one alone."""
        found = sorted({version for version, _ in self.measured_by})
        return "" if found in ([], [code_version()]) else f" The cells were measured by l2c {' and '.join(found)}."

    def _file(self, name: str) -> Path:
        return self.path / "cells" / f"{name}.json"

    def _digest(self, file: str) -> str | None:
        """Return the digest of a file of the folder; None where there is none."""
        path = self.path / file
        return sha256_of(path) if path.is_file() else None


def targets_digest(images: Tensor) -> str:
    """Return the digest of the images (N, C, H, W) that errors are measured to, which each cell holds."""
    return digest_of_tensors([("images", images)])


def _drawn(name: str) -> tuple[str, ...]:
    """Return the files that are drawn with the cell of a name, METHOD-BUDGET-SEED: of the first seed alone."""
    method, _, seed = name.rpartition("-")
    return (f"samples/{method}.safetensors", f"graphs/{method}.json") if seed == "0" else ()


def cell_name(method: str, worth: float) -> str:
    """Return the name of the files of a method at a budget."""
    return f"{re.sub(r'[^A-Za-z0-9_]+', '_', method)}-{worth:g}"


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they come back from a file."""
    content: dict[str, Any] = json.loads(json.dumps(settings, default=lambda value: list(value)))
    return content


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a cell's file; None where it holds none."""
    try:
        content = parse_file(path)
    except (ValueError, OSError):
        return None
    return content if isinstance(content, dict) else None


def _cell(given: Mapping[str, Any], method: str) -> Cell:
    """Return a cell of a method; refuse one with other fields, or values that no measurement has."""
    if set(given) != {entry.name for entry in fields(Cell)} or given["method"] != method:
        raise ValueError("no cell")
    numbers: dict[str, Any] = {
        name: finite_number(name, value, low=0.0) for name, value in given.items() if name != "method"
    }
    if not numbers["seconds"]:
        raise ValueError("no time")
    return Cell(**{**numbers, "method": method, "seed": whole_number("seed", given["seed"])})
