"""Required fields of a JSON object, each refused in one sentence where it is missing or of another type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def refuse_constant(name: str) -> float:
    """Refuse NaN and infinities, which Python's JSON reader lets through; for `json.loads(parse_constant=...)`."""
    raise ValueError(f"{name} is not a number that JSON knows; export the graph again")


def numbers(values: Sequence[float]) -> list[float]:
    """Return numbers of JSON, which may have any size, as floats."""
    try:
        return [float(value) for value in values]
    except OverflowError as error:
        raise ValueError("a number of sampler.timesteps is too large for a float; export the graph again") from error


def member(content: Mapping[str, Any], key: str, kind: Any, name: str | None = None) -> Any:
    """Return a required member of a JSON object, of the given type."""
    name = name or key
    if key not in content:
        raise ValueError(f"the field {name} is missing; export the graph again")
    value = content[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"the field {name} must be {wanted}, got {type(value).__name__}")
    return value


def items(content: Mapping[str, Any], key: str, kind: Any, name: str) -> Sequence[Any]:
    """Return a required list whose items all have the given type."""
    values = member(content, key, list, name)
    for i, value in enumerate(values):
        member({name: value}, name, kind, f"{name}[{i}]")
    return values
