"""The wheel: what it holds, and that it works installed, from another folder."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import l2c

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = (
    *("dit_digits.safetensors", "uvit_digits.safetensors", "digits_classifier.safetensors"),
    *("dit_emoji.safetensors", "emoji_classifier.safetensors"),
    *("dit_digits_ddim20.json", "uvit_digits_dpm20.json", "dit_emoji_euler28.json", "dit_emoji_euler28_l2c.json"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    builders = pytest.importorskip("hatchling.builders.wheel")
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_holds_what_a_checkout_has(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "l2c").rglob("*.py")}
    presets = {f"l2c/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert len(presets) > 25
    files = {"l2c/graph/cache_graph.schema.json", "l2c/py.typed", *(f"l2c/checkpoints/{name}" for name in BUNDLED)}
    assert sources | presets | files <= names
    assert {path.name for path in (ROOT / "checkpoints").glob("*.json")} <= set(BUNDLED)


def test_the_wheel_has_the_version_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"l2c-{l2c.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "l2c = l2c.commands.frame.start:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert f"\nVersion: {l2c.__version__}\n" in metadata
    assert f"\nversion: {l2c.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def imported_packages():
    """Return the top-level names that the package imports, wherever in its files."""
    names = set()
    for path in (ROOT / "l2c").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"l2c"}


def test_everything_imported_is_declared(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"l2c-{l2c.__version__}.dist-info/METADATA").decode()
    lines = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if "Requires-Dist" in line]
    bounds = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
        bounds.setdefault(name, set()).add(re.search(r">=([\d.]+)", line)[1])
    owners = packages_distributions()
    imported = {owners[name][0].lower().replace("_", "-") for name in imported_packages() if name in owners}
    assert imported <= bounds.keys() | {"torchvision"}  # timm brings it
    assert {"pillow", "pyyaml", "huggingface-hub"} <= imported
    assert all(len(given) == 1 for given in bounds.values()), "one lower bound for each package"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return a function that calls a program of a fresh environment, which has the wheel and borrows the rest."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"pip cannot install into another environment here: {done.stderr[-300:]}")
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    here = folder / "elsewhere"
    here.mkdir()
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "L2C_CHECKPOINTS")}

    def run(program, *arguments):
        done = subprocess.run(
            [environment / "bin" / program, *arguments],
            cwd=here,
            env={**variables, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.package, run.here = site / "l2c", here
    return run


def test_the_installed_package_works_from_another_folder(installed):
    def files():
        return {path: path.stat().st_mtime_ns for path in installed.package.rglob("*")}

    before = files()
    where = installed("python", "-c", "import l2c; print(l2c.__file__, l2c.__version__)")
    assert where.split() == [str(installed.package / "__init__.py"), l2c.__version__]
    assert "train routers" in installed("l2c", "--help")
    assert "20 evaluations" in installed("l2c", "show", "dit_digits_ddim20")
    assert (installed.here / "dit_digits_ddim20.png").is_file()
    installed("l2c", "sample", "graph=dit_digits_ddim20", "labels=[3]", "hydra.run.dir=drawn")
    assert (installed.here / "drawn" / "samples.png").is_file()
    small = ["trainer.max_steps=2", "solver.num_evaluations=4", "hydra.run.dir=run"]
    printed = installed("python", "-m", "l2c", "train", *small)
    assert (installed.here / "run" / "cache_graph.json").is_file()
    assert "cache_graph.json" in printed
    assert files() == before


THREE_LINES = """
import l2c, torch

l2c.apply  # before diffusers, where torchvision is of another build than torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({folder!r})
pipe.set_progress_bar_config(disable=True)
call = dict(num_inference_steps=6, guidance_scale=4.5)
graph = l2c.accelerate(pipe, ["a cat", "a dog"], budget=0.6, num_trajectories=1, **call)
images = pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="np", **call).images
l2c.remove(pipe)
plain = pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="np", **call).images
print(graph.removed_fraction_overall, abs(images - plain).max())
"""


def test_the_installed_package_accelerates_a_pipeline(installed, tiny_pipeline):
    pytest.importorskip("diffusers")
    removed, difference = map(
        float, installed("python", "-c", THREE_LINES.format(folder=str(tiny_pipeline))).split()[-2:]
    )
    assert 0 < removed < 1
    assert 0 < difference < 1
