"""The version of this package, for what it writes."""

from __future__ import annotations

import importlib.metadata


def package_version() -> str:
    """Return the installed version of l2c, e.g. `0.1.0`."""
    return importlib.metadata.version("l2c")
