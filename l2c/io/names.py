"""Names that a user may have meant."""

from __future__ import annotations

import difflib


def near_names(name: str, known: list[str]) -> str:
    """Say which known names are near to an unknown one."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
