"""What loads when it is first used: names of a package, packages that are needed only then, packages themselves."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import FrameType, ModuleType
from typing import Any


@contextmanager
def needed(package: str, what: str, extra: str | None = None) -> Iterator[None]:
    """Turn the error of a missing package in the `with` block into a sentence on how to install it; others pass.

    Args:
        package: the package as it is imported.
        what: what needs it, with its verb: `encoding images needs`.
        extra: the extra of ours that brings it; None = a plain installation does.

    Raises:
        ValueError: if there is no such package.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        command = "pip install ." if extra is None else f"pip install '.[{extra}]'"
        raise ValueError(f"{what} the package {package}; run {command} in a clone of l2c") from error


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package.

    A public name is taken from the module that defines it; a submodule is imported, so that `package.room.module`
    works after `import package`. Both are then kept as plain attributes.

    Args:
        package: the package's `__name__`.
        homes: the module of each public name.

    """

    def load(name: str) -> Any:
        module = sys.modules[package]
        if name in homes:
            value = getattr(import_module(homes[name]), name)
        else:
            spec = None if name.startswith("_") else find_spec(f"{package}.{name}")
            if spec is None or spec.origin is None:  # None: no module, or a folder of data
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = import_module(f"{package}.{name}")
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names


class _Thread(threading.local):
    """What a thread does: `depth` > 0 inside `postponed`."""

    depth = 0


_HOLDER: int | None = None  # the thread that holds the lock
_LOCK = threading.RLock()  # held while a package runs, and while stand-ins are put in place
_HERE = _Thread()
_PATIENCE = 30.0  # seconds: threads that are inside an import go on with what is there, the package may wait for them
_TURN = 0.05  # seconds, after which a thread looks whether the package does wait for it
_LONGER = 300.0  # those that import nothing wait until these have gone on
_READ = ("__path__", "__all__", "__version__")  # special names that run a package; others are looked for in passing


class _Postponed(ModuleType):
    """A package that has not run. An import of a submodule, or a name that it lacks, runs it; then it is as any."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and _HERE.depth:
            return _spec(self).submodule_search_locations
        if name.startswith("__") and name not in _READ:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _run(self)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        _run(self)
        return dir(self)


class _Running(ModuleType):
    """A package that runs: other threads wait for it, its own finds what is there so far."""

    def __getattr__(self, name: str) -> Any:
        with _alone():
            if type(self) is _Running:  # this very thread runs it
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        return getattr(self, name)


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock, or go on without it, since another import may wait for this thread.

    A thread that imports a module for which the package's own import waits goes on at once. One that the package
    waits for in another way, by a lock of the user's, goes on after `_PATIENCE`: nobody can see that.
    """
    global _HOLDER
    importing = _importing()
    end = time.monotonic() + (_PATIENCE if importing else _LONGER)
    while not (held := _LOCK.acquire(timeout=_TURN)):
        if time.monotonic() > end or (importing and _waits_for_us(_HOLDER)):
            break
    if held:
        outer, _HOLDER = _HOLDER, threading.get_ident()
    try:
        yield
    finally:
        if held:
            _HOLDER = outer
            _LOCK.release()


def _waits_for_us(thread: int | None) -> bool:
    """Say whether a thread waits for a module that this one imports, maybe by way of others; not where unknown."""
    waiting = getattr(getattr(importlib, "_bootstrap", None), "_blocking_on", {})  # of Python 3.10 to 3.14
    for _ in range(64):
        lock = waiting.get(thread)
        lock = lock[-1] if isinstance(lock, list) and lock else lock  # a list since Python 3.12
        thread = getattr(lock, "owner", None)
        if thread == threading.get_ident():
            return True
    return False


def _importing() -> bool:
    """Say whether this thread is inside the import of a module, which others then wait for."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_find_and_load":
        frame = frame.f_back
    return frame is not None


def _spec(package: ModuleType) -> ModuleSpec:
    assert package.__spec__ is not None
    return package.__spec__


def _run(package: ModuleType) -> None:
    """Run a package that was postponed, after those that it lies in, as an import would have done."""
    with _alone():
        outer = sys.modules.get(package.__name__.rpartition(".")[0])
        if type(outer) is _Postponed:
            _run(outer)
        if type(package) is not _Postponed:  # by another thread, or by the outer package
            return
        spec = _spec(package)
        assert spec.loader is not None
        package.__class__ = _Running  # type: ignore[assignment]
        package.__path__ = list(spec.submodule_search_locations or ())
        try:
            spec.loader.exec_module(package)
        except BaseException:
            if sys.modules.get(spec.name) is package:
                del sys.modules[spec.name]  # the next import tries again
            raise
        finally:
            package.__class__ = ModuleType  # type: ignore[assignment]


@contextmanager
def postponed(*packages: str) -> Iterator[None]:
    """Import submodules of packages in the `with` block without running the packages.

    A package that has run is left as it is. One that has not is put into `sys.modules` as a stand-in that runs it,
    once, when its names are used or anything else imports it or a submodule of it; submodules that are there by then
    stay the same objects. Other threads never see a package half-run.

    `import timm`, for three modules of it, brings all of its models, torchvision with its own, torch's compiler and,
    where it is installed, wandb.

    Args:
        packages: their full names, a package before those that lie in it; those that are not installed are left out.

    """
    _HERE.depth += 1
    try:
        with _alone():
            for name in packages:
                _put(name)
        yield
    finally:
        _HERE.depth -= 1


class _Same(Loader):
    """Loader of a submodule that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that is there."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""
        module.__spec__ = self.spec


class _Loaded(MetaPathFinder):
    """Import finder of submodules that a postponed package has imported while Python looked for them.

    Python asks a package for its path before it imports a submodule, which runs the package. It then goes on to
    import a submodule that the package has just brought, and would make a second one.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a submodule that is there; None for others, and where one is to be loaded again."""
        module = sys.modules.get(fullname)
        known = getattr(module, "__spec__", None)
        if module is None or known is None or target is not None or fullname.partition(".")[0] not in _PACKAGES:
            return None
        spec = ModuleSpec(fullname, _Same(module), origin=known.origin)
        spec.submodule_search_locations = known.submodule_search_locations
        return spec


_PACKAGES: set[str] = set()  # whose stand-ins were put in place
_LOADED = _Loaded()


def _put(name: str) -> None:
    """Put the stand-in of a package in place, if it is not there and its outer package has not run."""
    outer = name.rpartition(".")[0]
    if name in sys.modules or (outer and type(sys.modules.get(outer)) is not _Postponed):
        return
    spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return
    package = module_from_spec(spec)
    del package.__path__
    package.__class__ = _Postponed
    sys.modules[name] = package
    _PACKAGES.add(name.partition(".")[0])
    if _LOADED not in sys.meta_path:
        sys.meta_path.insert(0, _LOADED)
    if outer:
        setattr(sys.modules[outer], name.rpartition(".")[2], package)
