"""Arguments as code gives them, numpy's and torch's included, turned into Python's own; or refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from l2c.io.names import Function, near_keywords, quoted
from l2c.io.numbers import finite_number

Check = Callable[[str, Any], Any]


def each(name: str, values: Any) -> Iterable[Any]:
    """Return the items of a list, an array or another sequence.

    Raises:
        ValueError: if it is none, as one text or number.

    """
    if not isinstance(values, (str, bytes, Mapping)):
        try:
            return iter(values)
        except TypeError:  # of numbers, and of tensors without dimensions
            pass
    raise ValueError(f"{name} must be a list, got {quoted(values)} ({type(values).__name__})")


def decisions(rows: Any) -> tuple[tuple[bool, ...], ...]:
    """Return rows of Python's bools, since the seam tells True, False and weights apart.

    Raises:
        ValueError: if an entry is neither a bool nor 0 or 1, as those of a router's soft rows.

    """
    return tuple(_row(row) for row in each("rows", rows))


def _row(row: Any) -> tuple[bool, ...]:
    if isinstance(row, str):
        raise ValueError("rows must hold bools, got text; CacheGraph.from_json reads rows of 0 and 1 as text")
    bits = tuple(each("a row", row))
    if not set(map(type, bits)) <= {bool}:
        for bit in bits:
            if isinstance(bit, (str, bytes)) or not (bit == 0 or bit == 1):
                raise ValueError(f"rows must hold bools, got {quoted(bit)}; say for instance router > threshold")
        bits = tuple(map(bool, bits))
    return bits


def floats(name: str, values: Any) -> tuple[float, ...]:
    """Return a list of Python's floats, not all of them finite maybe.

    Raises:
        ValueError: if it is no list, or an entry no number.

    """
    given = tuple(each(name, values))
    try:
        if any(isinstance(value, (str, bytes, bool)) for value in given):
            raise TypeError
        return tuple(map(float, given))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a list of numbers, got {', '.join(map(quoted, given[:4]))}") from None


def text(name: str, value: Any) -> str:
    """Return a text.

    Raises:
        ValueError: if it is none.

    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {quoted(value)} ({type(value).__name__})")
    return str(value)


def table(name: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping.

    Raises:
        ValueError: if it is none.

    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be values by name, got {quoted(value)} ({type(value).__name__})")
    return value


def plain_table(name: str, value: Any) -> dict[str, Any]:
    """Return a mapping of names to texts, finite numbers, bools and None, or lists of these.

    Raises:
        ValueError: if it is none, or holds something else.

    """
    return {
        text(f"a name in {name}", key): _plain(f"{name}[{quoted(key)}]", v) for key, v in table(name, value).items()
    }


def _plain(name: str, value: Any, *, listed: bool = True) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if listed and isinstance(value, (list, tuple)):
        return [_plain(name, member, listed=False) for member in value]
    return finite_number(name, value)


def names(name: str, values: Any) -> tuple[str, ...]:
    """Return names, of which one may stand without brackets.

    Raises:
        ValueError: if it is no list, or one of them is no text.

    """
    return (values,) if isinstance(values, str) else tuple(text(name, value) for value in each(name, values))


def takes(**checks: Check | type) -> Callable[[Function], Function]:
    """Let a function check arguments by name before it begins; None passes where it is the default.

    An argument that the function does not have is refused with the near ones, by a TypeError.

    Args:
        checks: of an argument the class that it must be of, or a function of its name and value that returns what the
            function gets, or raises a ValueError.

    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            try:
                bound = signature.bind(*args, **given)
            except TypeError:  # whose sentence does not name the function, as Python's own does
                return function(*args, **given)
            for name, check in checks.items():
                value = bound.arguments.get(name)
                if name in bound.arguments and not (value is None and signature.parameters[name].default is None):
                    checked = instance(name, value, check) if isinstance(check, type) else check(name, value)
                    bound.arguments[name] = checked
            return function(*bound.args, **bound.kwargs)

        return near_keywords()(call)  # type: ignore[return-value]

    return decorate


def instance(name: str, value: Any, kind: type) -> Any:
    """Return an object of a class.

    Raises:
        ValueError: if it is of none such.

    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ValueError(f"{name} must be {article} {kind.__name__}, got {quoted(value)}")
    return value
