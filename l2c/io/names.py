"""Names in messages: shown safely, and compared with those that a user may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

SHOWN = 80  # characters of a stranger's text that a message repeats


def near_names(name: str, known: list[str], prefix: str = "") -> str:
    """Say which known names are near to an unknown one, each with a prefix such as `router.`."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    shown_names = [f"{prefix}{each}" for each in near or known]
    return f"did you mean {' or '.join(shown_names)}?" if near else f"known are {', '.join(shown_names)}"


def check_folder_or_hub(what: str, name: str) -> None:
    """Refuse what is neither a folder nor can be a name on the Hub, which would say it of its own names only.

    Args:
        what: what is looked for, `pipeline`.
        name: the folder or the name.

    Raises:
        FileNotFoundError: if there is no such folder.

    """
    if not Path(name).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(
            f"there is no folder {shown(name, 300)}; give the {what} as a folder that save_pretrained wrote, or as a "
            "name on the Hub (OWNER/NAME)"
        )


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
