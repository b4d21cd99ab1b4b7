"""How large the parts of the package may grow, and how alike they may be."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "l2c"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULE, MAX_FUNCTION, MAX_ROOM = 350, 60, 16  # lines, lines, modules of a folder
MAX_SHARED = 8  # lines that two places may have in common


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_MODULE, f"{relative(path)} has {text.count(chr(10))} lines; split it by nouns"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{relative(path)}: {node.name} has {lines} lines; split it"


def test_rooms_stay_small():
    rooms = Counter(relative(path.parent) for path in MODULES if path.name != "__init__.py")
    crowded = {room: count for room, count in rooms.items() if count > MAX_ROOM}
    assert not crowded, f"more than {MAX_ROOM} modules: {crowded}; a room with two subjects is two rooms"


def own_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a file that say something of its own.

    Imports do not, nor do heads of functions: a method has the head of the one that it stands for.
    """
    text = path.read_text(encoding="utf-8")
    others: set[int] = set()
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        if isinstance(node, ast.Import | ast.ImportFrom):
            others |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.FunctionDef):
            others |= set(range(node.lineno, node.body[0].lineno))
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in numbered if line and number not in others]


def test_no_two_places_share_more_than_a_few_lines():
    root = PACKAGE.parent
    places: dict[tuple[str, ...], list[str]] = {}
    others = ("benchmarks/**/*.py", "scripts/*.py", "examples/*.py", "*.py", "configs/**/*.yaml")
    for path in (*MODULES, *(found for pattern in others for found in sorted(root.glob(pattern)))):
        lines = own_lines(path)
        for i in range(len(lines) - MAX_SHARED):
            part = tuple(line for _, line in lines[i : i + MAX_SHARED + 1])
            places.setdefault(part, []).append(f"{path.relative_to(root)}:{lines[i][0]}")
    shared = [found for found in places.values() if len(found) > 1]
    assert not shared, f"more than {MAX_SHARED} equal lines: {shared}"
