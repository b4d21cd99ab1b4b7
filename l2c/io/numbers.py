"""Numbers and truth values that a user or a file gives; one that is none, or out of range, is refused."""

from __future__ import annotations

import contextlib
import math
import numbers
from typing import Any

from l2c.io.names import quoted, shown

LARGEST_SEED = 2**32 - 1
AT_ONCE = 10**6  # images or trajectories that are held in memory together, at most


def scalar(value: Any) -> Any:
    """Return the number in a 0-d array or tensor as Python's own; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        with contextlib.suppress(RuntimeError, ValueError):  # of a tensor that holds no numbers
            return value.item()
    return value


def finite_number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number in [low, high] as a float.

    Args:
        name: name of the number, for the message.
        value: an integer or a float, of Python or numpy, or in a 0-d array or tensor; no text, no bool.
        low: the smallest allowed.
        high: the largest allowed.

    Raises:
        ValueError: if the value is no number, not finite, or out of range.

    """
    allowed = f"a finite number{_range(low, high)}"
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{shown(name, 200)} must be {allowed}, got {quoted(value)} ({type(value).__name__})")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result) or not low <= result <= high:
        raise ValueError(f"{shown(name, 200)} must be {allowed}, got {quoted(value)}")
    return result


def whole_number(name: str, value: object, *, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number in [low, high]; 2.0 counts as 2.

    Args:
        name: name of the number, for the message.
        value: an integer, or a float without a fraction, as for `finite_number`; no text, no bool.
        low: the smallest allowed; None = any.
        high: the largest allowed; None = any.

    Raises:
        ValueError: if the value is no whole number, or out of range.

    """
    limits = (-math.inf if low is None else low, math.inf if high is None else high)
    allowed = f"a whole number{_range(*limits)}"
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{shown(name, 200)} must be {allowed}, got {quoted(value)} ({type(value).__name__})")
    number: Any = value  # mypy knows no comparison of a Real
    whole = isinstance(value, numbers.Integral) or float(number).is_integer()
    if not whole or not limits[0] <= number <= limits[1]:
        raise ValueError(f"{shown(name, 200)} must be {allowed}, got {quoted(value)}")
    return int(number)


def truth_value(name: str, value: object) -> bool:
    """Return a bool, also one of numpy or torch; a text such as "false" is none, which Python would take as true.

    Raises:
        ValueError: if the value is neither True nor False.

    """
    value = scalar(value)
    if not isinstance(value, bool):
        raise ValueError(f"{shown(name, 200)} must be True or False, got {quoted(value)} ({type(value).__name__})")
    return value


def _range(low: float, high: float) -> str:
    if low == -math.inf and high == math.inf:
        return ""
    least, most = (f"{limit:g}" if isinstance(limit, float) else str(limit) for limit in (low, high))
    if high == math.inf:
        return f" of at least {least}"
    return f" up to {most}" if low == -math.inf else f" in [{least}, {most}]"
