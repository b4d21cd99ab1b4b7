"""What `benchmarks/gpu.sh` packs for a machine that has torch alone, and takes there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import packages

ROOT = Path(__file__).resolve().parents[2]


def bare(*arguments, path=()):
    """Call a Python that has no packages but those of some folders."""
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        env={"PYTHONPATH": ":".join(map(str, (ROOT, *path))), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "PACKAGES", {"hydra-core": "hydra", "tqdm": "tqdm"})
    assert packages.pack(tmp_path / "wheels") == 0
    return tmp_path / "wheels"


def test_what_is_packed_is_whole_without_anything_else(packed, tmp_path):
    names = {packages.normal(path.name.split("-")[0]) for path in packed.iterdir()}
    assert names == {"hydra-core", "tqdm", "omegaconf", "antlr4-python3-runtime", "pyyaml", "packaging"}
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu import packages; "
        f"print(packages.unpack(Path({str(packed)!r}), Path({str(tmp_path / 'site')!r}))); "
        f"print(packages.unpack(Path({str(packed)!r}), Path({str(tmp_path / 'other')!r}))); "
        "import hydra, omegaconf, yaml, tqdm; print(hydra.__version__, yaml.__file__)"
    )
    done = bare("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["6", "0"]  # what is there stays
    assert done.stdout.splitlines()[2].split()[0] == version("hydra-core")
    assert str(tmp_path / "site") in done.stdout


@pytest.mark.parametrize(
    ("installed", "serves"), [("0.9", False), ("2.1", True), ("2.0.0rc1", False), ("10.0", True)]
)
def test_what_is_too_old_does_not_serve(monkeypatch, installed, serves):
    monkeypatch.setattr(packages, "distribution", lambda _: SimpleNamespace(version=installed))
    assert packages._serves("some-package", {"some-package": ">=2.1.0,<11"}) is serves
    assert packages._serves("of-torch", {})  # nobody asks for a version


def test_torch_is_left_to_the_machine():
    belongs = ("torch", "torchvision", "triton", "pytorch-triton-rocm", "nvidia-cublas-cu12", "nvidia-nccl-cu12")
    assert all(packages.OF_TORCH.fullmatch(name) for name in belongs)
    assert not any(packages.OF_TORCH.fullmatch(name) for name in ("torchmetrics", "pytorch-lightning", "numpy"))


def test_every_name_is_of_this_project_or_compared_with():
    asked = packages._specifiers()
    assert asked["lightning"].startswith(">=2")
    assert set(packages.PACKAGES) - set(asked) == set(packages.TO_COMPARE)


def test_a_package_that_is_not_to_be_had_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for lacking, code in (("no-such-package", 1), ("cache-dit", 0)):
        if lacking == "cache-dit":
            try:
                version(lacking)
            except PackageNotFoundError:
                pass
            else:
                continue
        monkeypatch.setattr(packages, "PACKAGES", {"tqdm": "tqdm", lacking: "nothing"})
        assert packages.pack(tmp_path) == code
        said = capfd.readouterr()
        assert "packed 1 packages" in said.out
        assert f"not packed: {lacking}: ERROR: No matching distribution found" in said.err


def test_what_pip_makes_is_followed_too(tmp_path, monkeypatch):
    """A wheel that is not installed is read for what it depends on."""
    made = tmp_path / "index" / "some_package-1.0-py3-none-any.whl"
    made.parent.mkdir()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("some_package.py", "")
        said = "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\nRequires-Dist: tqdm\nRequires-Dist: torch\n"
        archive.writestr("some_package-1.0.dist-info/METADATA", said + 'Requires-Dist: none; extra == "more"\n')
        archive.writestr("some_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_package-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    monkeypatch.setattr(packages, "PACKAGES", {"some-package": "some_package"})
    assert packages.pack(tmp_path / "wheels") == 0
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "wheels").iterdir()) == ["some_package", "tqdm"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (None, "there are no wheels in"),
        ("some_package-1.0-cp27-cp27m-any", "some_package-1.0-cp27-cp27m-any.whl was packed for another Python"),
        ("some_package-1.0-cp399-abi3-any", "was packed for another Python"),
        ("some_package-1.0-py3-none-win_amd64", "was packed for another machine"),
        ("some_package-1.0-py3-none-any", "is no whole wheel; copy it over again"),
    ],
)
def test_wheels_that_do_not_fit_are_refused(tmp_path, name, says):
    if name is not None:
        (tmp_path / f"{name}.whl").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=says):
        packages.unpack(tmp_path, tmp_path / "site")


def test_what_is_missing_is_one_sentence():
    done = bare("-m", "benchmarks.gpu")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: not installed here: ")
    assert all(name in line for name in packages.PACKAGES)
    assert "--pack DIR on a machine that has the packages or a network" in line
