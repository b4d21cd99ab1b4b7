"""Names in messages: shown safely, and compared with those that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 80  # characters of a stranger's text that a message repeats


def near_names(name: str, known: list[str], prefix: str = "") -> str:
    """Say which known names are near to an unknown one, each with a prefix such as `router.`."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    shown_names = [f"{prefix}{each}" for each in near or known]
    return f"did you mean {' or '.join(shown_names)}?" if near else f"known are {', '.join(shown_names)}"


def shown(value: object, limit: int = SHOWN) -> str:
    """Return text, or what another value prints as, for a message: one short line without control characters.

    Args:
        value: anything; text that others wrote (names in files, for one) above all.
        limit: characters that are kept; the rest becomes `...`.

    """
    text = str(value)
    cut = text[:limit] + ("..." if len(text) > limit else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def quoted(value: object, limit: int = SHOWN) -> str:
    """Return a value as Python writes it (text in quotes), for a message: one short line, see `shown`."""
    if isinstance(value, str):
        return f"{value[:limit]!r}" + ("..." if len(value) > limit else "")
    return shown(repr(value) if isinstance(value, (int, float, bool, type(None))) else type(value).__name__, limit)


def listed(values: Iterable[object], count: int = 8) -> str:
    """Return the first values of many in brackets, for a message."""
    values = list(values)
    return f"[{', '.join(map(shown, values[:count]))}{', ...' if len(values) > count else ''}]"
