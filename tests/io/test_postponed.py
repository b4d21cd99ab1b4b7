"""Submodules are there without their package; the package runs once, in place, when it is asked for."""

import importlib
import sys
import threading

import pytest

from l2c.io.lazy import postponed

OUTER = """
import time
RUNS = ["outer"]
time.sleep(0.05)
from .inner import Part
version = 3
"""
INNER = """
from l2c_outer import RUNS
RUNS.append("inner")
from .part import Part
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `l2c_outer` with a package `inner` in it, whose module `part` needs neither; and what has run."""
    inner = tmp_path / "l2c_outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "l2c_outer" / "__init__.py").write_text(OUTER)
    (inner / "__init__.py").write_text(INNER)
    (inner / "part.py").write_text("class Part: pass\n")
    (tmp_path / "l2c_outer" / "other.py").write_text("from l2c_outer import version\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield inner
    for name in [name for name in sys.modules if name.partition(".")[0] == "l2c_outer"]:
        del sys.modules[name]


def part():
    with postponed("l2c_outer", "l2c_outer.inner"):
        return importlib.import_module("l2c_outer.inner.part").Part


def has_run():
    return "RUNS" in vars(sys.modules["l2c_outer"])


def uses():
    import l2c_outer

    return {
        "a name": lambda: l2c_outer.version,
        "a name of the inner package": lambda: l2c_outer.inner.RUNS,
        "the names": lambda: dir(l2c_outer),
        "from": lambda: importlib.import_module("l2c_outer").version,
        "another submodule": lambda: importlib.import_module("l2c_outer.other"),
        "a star": lambda: exec("from l2c_outer.inner import *", {}),
    }


@pytest.mark.parametrize(
    "use", ["a name", "a name of the inner package", "the names", "from", "another submodule", "a star"]
)
def test_a_package_runs_once_when_it_is_asked_for(package, use):
    found = part()
    assert not has_run()
    outer = sys.modules["l2c_outer"]
    assert not hasattr(outer, "__wrapped__")  # what scans all modules looks for such names
    assert not has_run()
    uses()[use]()
    assert has_run()
    assert sys.modules["l2c_outer"] is outer
    assert outer.RUNS == ["outer", "inner"]
    assert outer.inner.Part is found is outer.inner.part.Part
    assert not hasattr(outer, "nothing")
    assert part() is found


def test_a_submodule_that_the_package_brings_is_imported_once(package):
    """`import torchvision.transforms.functional` made a second `transforms`, which lacked it."""
    third = package.parent / "third"
    third.mkdir()
    (third / "__init__.py").write_text("from . import deep\nfrom l2c_outer import RUNS\nRUNS.append('third')\n")
    (third / "deep.py").write_text("name = 'deep'\n")
    outer = package.parent / "__init__.py"
    outer.write_text(outer.read_text() + "from . import third\n")
    part()
    assert importlib.import_module("l2c_outer.third.deep").name == "deep"
    module = sys.modules["l2c_outer"]
    assert module.third is sys.modules["l2c_outer.third"]
    assert module.third.deep is sys.modules["l2c_outer.third.deep"]
    assert module.RUNS == ["outer", "inner", "third"]
    assert module.third.__spec__.loader_state is None
    assert module.third.__spec__.origin == str(third / "__init__.py")
    importlib.reload(module.third)
    assert module.RUNS[-2:] == ["third", "third"]


def test_a_package_that_has_run_stays_as_it_is(package):
    import l2c_outer

    assert part() is l2c_outer.Part
    assert l2c_outer.RUNS == ["outer", "inner"]


def test_packages_that_are_not_installed_are_left_out():
    with postponed("l2c_no_such_package", "l2c_no_such_package.inner"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("l2c_no_such_package.inner.part")


def test_a_package_that_fails_says_why_and_may_be_tried_again(package):
    (package / "__init__.py").write_text("raise ImportError('broken')")
    part()
    with pytest.raises(ImportError, match="broken"):
        sys.modules["l2c_outer"].version  # noqa: B018
    with pytest.raises(ImportError, match="broken"):
        importlib.import_module("l2c_outer.other")


def test_threads_wait_for_the_whole_package(package):
    part()
    found = []
    threads = [threading.Thread(target=lambda: found.append(sys.modules["l2c_outer"].version)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [3] * 8
    assert sys.modules["l2c_outer"].RUNS == ["outer", "inner"]


def test_threads_outside_run_the_package_meanwhile(package):
    with postponed("l2c_outer", "l2c_outer.inner"):
        thread = threading.Thread(target=lambda: importlib.import_module("l2c_outer.other"))
        thread.start()
        thread.join(30)
        assert has_run()
    assert part() is sys.modules["l2c_outer"].Part


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "by its time"])
def test_a_thread_that_imports_nothing_waits_for_imports_that_wait_for_each_other(package, monkeypatch, seen):
    """The package runs and wants `side`, which another thread imports and which wants a name of the package."""
    if not seen:
        monkeypatch.setattr("l2c.io.lazy._waits_for_us", lambda thread: False)
        monkeypatch.setattr("l2c.io.lazy._PATIENCE", 0.2)
    (package.parent / "__init__.py").write_text("import time\ntime.sleep(0.1)\nfrom . import side\nversion = 3\n")
    side = "import time, l2c_outer\ntime.sleep(0.3)\nEARLY = getattr(l2c_outer, 'version', None)\n"
    (package.parent / "side.py").write_text(side)
    part()
    found = {}

    def read(name):
        found[name] = sys.modules["l2c_outer"].version

    runs = threading.Thread(target=read, args=("the one that runs it",))
    runs.start()
    while "time" not in vars(sys.modules["l2c_outer"]):
        pass
    others = [
        threading.Thread(target=lambda: importlib.import_module("l2c_outer.side")),
        threading.Thread(target=read, args=("another",)),
    ]
    for thread in others:
        thread.start()
    for thread in (runs, *others):
        thread.join(10)  # long before anybody's patience ends
    assert found == {"the one that runs it": 3, "another": 3}
    assert sys.modules["l2c_outer.side"].EARLY is None
