"""Who may import whom (DESIGN.md, Layout), read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"graph", "diffusion", "data", "backbones"}
MIDDLE = {"sampling", "evaluation", "integrations"}
TOP = {"training", "policies"}
LEAVES = {
    "atomic",
    "hub",
    "correction_file",
    "json_fields",
    "layer_names",
    "memory",
    "reuse",
    "seeding",
    "_torchvision",
}  # helpers that import nothing of ours; `cli` serves the entries
MAY_IMPORT = {
    **{part: {part} for part in GROUND},
    "sampling": {"sampling"} | GROUND,
    "evaluation": {"evaluation", "sampling"} | GROUND,
    "integrations": {"integrations", "sampling"} | GROUND,
    "training": {"training", "policies"} | MIDDLE | GROUND,
    "policies": {"policies"} | MIDDLE | GROUND,
    "cli": {"cli"} | GROUND,
    **{part: set() for part in LEAVES},
}
ENTRIES = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
MODULES = sorted((ROOT / "l2c").rglob("*.py"))


def part_of(path):
    """Return `graph` for l2c/graph.py, `sampling` for l2c/sampling/sampler.py."""
    return path.relative_to(ROOT / "l2c").parts[0].removesuffix(".py")


def imported(path):
    """Return the dotted names of all modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, node.module] if node.module else above)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def heads(path):
    return {name.split(".")[0] for name in imported(path)}


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_parts_import_only_what_they_stand_on(path):
    if path.name == "__init__.py" and path.parent == ROOT / "l2c":
        return  # the public names come from everywhere
    allowed = MAY_IMPORT[part_of(path)] | LEAVES
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("l2c.")}
    assert ours <= allowed, f"{relative(path)} imports l2c.{' and l2c.'.join(sorted(ours - allowed))}"


def test_every_part_is_known():
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_entries_are_imported_by_nobody(path):
    entries = {entry.stem for entry in ENTRIES} | {"scripts"}
    assert not heads(path) & entries


def test_frameworks_stay_in_their_places():
    for path in [*MODULES, *ENTRIES]:
        found = heads(path)
        where = relative(path)
        if "hydra" in found:
            assert path in ENTRIES or where in ("l2c/cli.py", "l2c/training/run.py"), where
        if found & {"lightning", "pytorch_lightning"}:
            assert where.startswith(("l2c/training/", "l2c/data/")), where
        assert "wandb" not in found, f"{where}: only through Lightning's logger"


def test_public_package_holds_names_only():
    body = ast.parse((ROOT / "l2c" / "__init__.py").read_text(encoding="utf-8")).body
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)


def test_nouns_only():
    folders = [ROOT / name for name in ("l2c", "scripts", "configs", "tests")]
    names = {path.name for folder in folders for path in folder.rglob("*")}
    assert not names & {"utils.py", "utils", "helpers.py", "misc.py", "common.py", "common"}
