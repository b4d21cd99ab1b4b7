"""How large the parts of the package may grow."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "l2c"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULE, MAX_FUNCTION, MAX_ROOM = 350, 60, 16  # lines, lines, modules of a folder


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
