"""What was measured, as one JSON file and one page of tables; both are whole at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.task import Value
from l2c.io.atomic import write_json, write_text
from l2c.report.table import markdown_table


class Report:
    """Write `results.json` and `results.md` into a folder, anew with each line that comes in.

    What the folder holds already stays: a part's earlier figures go when a later run of it has as many.

    Args:
        folder: where they go.
        command: how this was called.
        names: of all parts, in their order.
        tiny: whether this is a rehearsal.

    Raises:
        ValueError: the folder holds results that cannot be gone on with.
        OSError: it cannot be read or written.

    """

    def __init__(self, folder: Path, *, command: str, names: list[str], tiny: bool) -> None:
        self.folder = folder
        self.command = command
        before = self._before(tiny)
        parts = {name: before.get(name, _waiting()) for name in dict.fromkeys([*names, *before])}
        self.content: dict[str, Any] = {"rehearsal": tiny, "parts": parts}
        self._earlier, self._now = _waiting(), _waiting()
        self.save()

    def _before(self, tiny: bool) -> dict[str, Any]:
        """Return the parts that the folder holds from an earlier run."""
        path = self.folder / "results.json"
        if not path.exists():
            return {}
        elsewhere = "give another folder as --output"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rehearsal, parts = content["rehearsal"], content["parts"]
            found = {name: {key: part[key] for key in _waiting()} for name, part in parts.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what this measurement writes; {elsewhere}") from error
        if rehearsal is not tiny:
            kinds = ("a measurement", "a rehearsal")
            raise ValueError(f"{path} is of {kinds[rehearsal]}, and this is {kinds[tiny]}; {elsewhere}")
        return found

    def begin(self, part: str) -> None:
        """Note that a part has begun."""
        self._earlier = self.content["parts"][part]
        self._now = _waiting() | {"status": "running", "command": self.command}
        self._show(part)

    def machine(self, part: str, name: str) -> None:
        """Say on what a part is measured."""
        self._now["machine"] = name

    def line(self, part: str, table: str, values: dict[str, Value]) -> None:
        """Take one line of a part's table."""
        self._now["tables"].setdefault(table, []).append(values)
        self._show(part)

    def end(self, part: str, status: str, reason: str | None, seconds: float) -> None:
        """Note how a part has ended: `done`, `stopped` (out of time), `left out` or `failed`."""
        self._now |= {"status": status, "reason": reason, "seconds": round(seconds, 1)}
        self._show(part)

    def _show(self, part: str) -> None:
        """Write a part as it stands now, or its earlier figures while there are more of them."""
        better = self._now["status"] == "done" or _count(self._now) >= _count(self._earlier)
        self.content["parts"][part] = self._now if better else self._earlier
        self.save()

    def status(self, part: str) -> str:
        """Return how a part stands."""
        return self.content["parts"][part]["status"]

    def lines(self, part: str) -> int:
        """Return how many lines of figures a part has."""
        return _count(self.content["parts"][part])

    def save(self) -> None:
        """Write both files."""
        write_json(self.folder / "results.json", self.content)
        write_text(self.folder / "results.md", self.page())

    def page(self) -> str:
        """Return everything as Markdown."""
        begun = [part for part in self.content["parts"].values() if part["machine"]]
        machines = list(dict.fromkeys(part["machine"] for part in begun))
        lines = ["# Measured on a GPU", ""]
        for name in machines or ["Not begun"]:
            commands = dict.fromkeys(part["command"] for part in begun if part["machine"] == name)
            lines += [f"{name}; {' and '.join(f'`{command}`' for command in commands or [self.command])}", ""]
        if self.content["rehearsal"]:
            lines += ["A rehearsal with tiny networks: that it ran is all that it says.", ""]
        for name, part in self.content["parts"].items():
            took = "" if part["seconds"] is None else f" in {part['seconds']} s"
            why = "" if part["reason"] is None else f": {part['reason']}"
            place = f"; on {part['machine']}" if len(machines) > 1 and part["machine"] else ""
            lines += [f"## {name}", "", f"{part['status']}{took}{why}{place}", ""]
            for title, rows in part["tables"].items():
                lines += [f"**{title}**", "", _table(rows), ""]
        return "\n".join(lines)


def _waiting() -> dict[str, Any]:
    return {"status": "waiting", "reason": None, "seconds": None, "machine": None, "command": None, "tables": {}}


def _count(part: dict[str, Any]) -> int:
    return sum(len(rows) for rows in part["tables"].values())


def _table(rows: list[dict[str, Value]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table([columns, *([_cell(row.get(name)) for name in columns] for row in rows)])


def _cell(value: Value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
