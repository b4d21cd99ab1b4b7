"""Who may import whom (DESIGN.md, Layout), read from the source."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up; a room imports itself and what stands before it, never what comes after.
ROOMS = (
    "io",
    "graph",
    "diffusion",
    "backbones",
    "data",
    "sampling",
    "calibration",
    "policies",
    "integrations",
    "pipelines",
    "report",
    "speed",
    "training",
    "drawing",
    "evaluation",
    "testbeds",
    "commands",
)
APART = ({"data", "diffusion"}, {"data", "backbones"}, {"policies", "integrations"})
ENTRIES = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
MODULES = sorted((ROOT / "l2c").rglob("*.py"))


def part_of(path):
    """Return `graph` for l2c/graph/cache_graph.py, `sampling` for l2c/sampling/sampler.py."""
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
def test_rooms_import_only_what_they_stand_on(path):
    if path.parent == ROOT / "l2c":
        return  # the public names come from everywhere
    own = part_of(path)
    allowed = set(ROOMS[: ROOMS.index(own) + 1])
    allowed -= {other for pair in APART if own in pair for other in pair - {own}}
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("l2c.")}
    assert ours <= allowed, f"{relative(path)} imports l2c.{' and l2c.'.join(sorted(ours - allowed))}"


def test_no_module_imports_itself_in_a_circle():
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
        if path != ROOT / "l2c" / "__init__.py"
    }
    wanted = {name: (imported(path) & set(names)) - {name} for name, path in names.items()}
    try:
        tuple(TopologicalSorter(wanted).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_room_is_known():
    assert {part_of(path) for path in MODULES if path.parent != ROOT / "l2c"} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_entries_are_imported_by_nobody(path):
    entries = {"train_router", "scripts", "benchmarks"}
    assert not heads(path) & entries


def test_frameworks_stay_in_their_places():
    for path in [*MODULES, *ENTRIES]:
        found = heads(path)
        where = relative(path)
        if found & {"hydra", "omegaconf"}:
            assert path in ENTRIES or where.startswith("l2c/commands/"), where
        if found & {"lightning", "pytorch_lightning"}:
            assert where.startswith(("l2c/training/", "l2c/data/", "l2c/drawing/", "l2c/testbeds/")), where
        assert "wandb" not in found, f"{where}: only through Lightning's logger"


def test_public_package_holds_names_only():
    body = ast.parse((ROOT / "l2c" / "__init__.py").read_text(encoding="utf-8")).body
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)


def test_nouns_only():
    folders = [ROOT / name for name in ("l2c", "scripts", "benchmarks", "configs", "tests")]
    names = {path.name for folder in folders for path in folder.rglob("*")}
    assert not names & {"utils.py", "utils", "helpers.py", "misc.py", "common.py", "common"}
