"""What was measured, as one JSON file and one page of tables; both are whole at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.task import Value
from l2c.io.atomic import write_json, write_text
from l2c.report.table import markdown_table


class Report:
    """Write `results.json` and `results.md` into a folder, anew with each line that comes in.

    Args:
        folder: where they go.
        command: how this was called.
        names: of all parts, in their order.
        tiny: whether this is a rehearsal.

    """

    def __init__(self, folder: Path, *, command: str, names: list[str], tiny: bool) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {
            "command": command,
            "machine": None,
            "rehearsal": tiny,
            "parts": {name: {"status": "waiting", "reason": None, "seconds": None, "tables": {}} for name in names},
        }
        self.save()

    def begin(self, part: str) -> None:
        """Note that a part has begun."""
        self.content["parts"][part]["status"] = "running"
        self.save()

    def machine(self, name: str) -> None:
        """Say on what it is measured."""
        self.content["machine"] = name

    def line(self, part: str, table: str, values: dict[str, Value]) -> None:
        """Take one line of a part's table."""
        self.content["parts"][part]["tables"].setdefault(table, []).append(values)
        self.save()

    def end(self, part: str, status: str, reason: str | None, seconds: float) -> None:
        """Note how a part has ended: `done`, `stopped` (out of time), `left out` or `failed`."""
        self.content["parts"][part] |= {"status": status, "reason": reason, "seconds": round(seconds, 1)}
        self.save()

    def status(self, part: str) -> str:
        """Return how a part stands."""
        return self.content["parts"][part]["status"]

    def save(self) -> None:
        """Write both files."""
        write_json(self.folder / "results.json", self.content)
        write_text(self.folder / "results.md", self.page())

    def page(self) -> str:
        """Return everything as Markdown."""
        lines = [
            "# Measured on a GPU",
            "",
            f"{self.content['machine'] or 'Not begun'}; `{self.content['command']}`",
            "",
        ]
        if self.content["rehearsal"]:
            lines += ["A rehearsal with tiny networks: that it ran is all that it says.", ""]
        for name, part in self.content["parts"].items():
            took = "" if part["seconds"] is None else f" in {part['seconds']} s"
            why = "" if part["reason"] is None else f": {part['reason']}"
            lines += [f"## {name}", "", f"{part['status']}{took}{why}", ""]
            for title, rows in part["tables"].items():
                lines += [f"**{title}**", "", _table(rows), ""]
        return "\n".join(lines)


def _table(rows: list[dict[str, Value]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table([columns, *([_cell(row.get(name)) for name in columns] for row in rows)])


def _cell(value: Value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
