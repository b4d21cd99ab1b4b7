"""Folders that travel with the package: presets, weights and graphs."""

from __future__ import annotations

from pathlib import Path


def project_folder(name: str) -> Path:
    """Return `configs` or `checkpoints`: beside this package in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
