"""Names of a package that load when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


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
