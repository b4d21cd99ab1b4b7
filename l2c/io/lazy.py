"""Names of a package that load when they are first used, and packages that are needed only then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
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
