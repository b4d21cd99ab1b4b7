"""Contents of files that hypothesis makes: by a schema, as a whole graph, or as a change of what is there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from mutations import VALUES, places

pytest.importorskip("hypothesis", reason="needs the package hypothesis: pip install '.[dev]'")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MOST = 5  # items of a generated list
TEXT = st.text(max_size=6)
FACTOR = st.floats(-2, 2)
NUMBER = st.one_of(st.integers(), st.floats(), st.integers(-3, 3), st.floats(-2, 2))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT, st.sampled_from(VALUES)),
    lambda inner: st.one_of(st.lists(inner, max_size=MOST), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


def holds(check: Callable[..., None], *strategies: st.SearchStrategy, count: int) -> None:
    """Call a check with values of some strategies, the same ones in every run; the smallest failure is told."""
    asked = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    asked(given(*strategies)(check))()


def of_schema(schema: Mapping[str, Any]) -> st.SearchStrategy:
    """Return the contents that a schema allows, of the words that ours uses; lists are short."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*map(of_schema, schema["anyOf"]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of(*(_of_kind(kind, schema) for kind in kinds))


def _of_kind(kind: str, schema: Mapping[str, Any]) -> st.SearchStrategy:
    bounds = {"min_value": schema.get("minimum"), "max_value": schema.get("maximum")}
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        return st.integers(**bounds)
    if kind == "number":
        return st.one_of(st.floats(**bounds, allow_nan=False, allow_infinity=False), st.integers(-9, 9))
    if kind == "string":
        return st.from_regex(schema["pattern"]) if "pattern" in schema else TEXT
    if kind == "array":
        items, least = of_schema(schema["items"]), schema.get("minItems", 0)
        return st.lists(items, min_size=least, max_size=MOST, unique=schema.get("uniqueItems", False))
    known = {name: of_schema(one) for name, one in schema.get("properties", {}).items()}
    others = schema.get("additionalProperties", True)
    further = (
        st.dictionaries(TEXT, JSON if others is True else of_schema(others), max_size=3) if others else st.just({})
    )
    needed = schema.get("required", ())
    fixed = st.fixed_dictionaries(
        {name: known[name] for name in needed},
        optional={name: one for name, one in known.items() if name not in needed},
    )
    return st.builds(lambda own, more: {**more, **own}, fixed, further)


@st.composite
def contents_of_graphs(draw: Callable) -> dict[str, Any]:
    """Return the content of a graph whose fields fit each other: all kinds of reuse, none of them by a digest."""
    count, width = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rows = [
        [True] * width,
        *draw(
            st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=count - 1, max_size=count - 1)
        ),
    ]
    times = sorted(draw(st.lists(st.integers(0, 999), min_size=count, max_size=count, unique=True)), reverse=True)
    reuse = [draw(st.sampled_from(("hold", "linear", "fitted"))) for _ in rows]
    fitted = [kind == "fitted" for kind in reuse]
    slopes = [[draw(FACTOR) for bit in row if is_one > bit] for row, is_one in zip(rows, fitted, strict=True)]
    mode, scale = draw(st.sampled_from((("dit", 1.5), ("cfg", 4.0), (None, None))))
    content = {
        "format": "l2c-cache-graph",
        "version": 1,
        "model": {
            "name": draw(st.sampled_from(("m", "dit_digits"))),
            "fingerprint": draw(st.sampled_from((None, "sha256:" + 64 * "0"))),
            "layers": [f"blocks.{i}" for i in range(width)],
        },
        "sampler": {
            "solver": draw(st.sampled_from(("ddim", "dpm_solver_2m", "own_a", "DDIMScheduler"))),
            "options": draw(st.sampled_from(({}, {"eta": 0.0}))),
            "num_evaluations": count,
            "timesteps": times,
            "guidance": {"mode": mode, "scale": scale},
        },
        "rows": ["".join("01"[bit] for bit in row) for row in rows],
        "reuse": reuse,
        "slopes": slopes,
        "provenance": draw(st.dictionaries(st.sampled_from("ab"), st.integers(-3, 3))),
        "statistics": {},
    }
    if draw(st.booleans()) and not any(fitted):
        del content["slopes"]
    return content


@st.composite
def changes(draw: Callable, contents: st.SearchStrategy | Mapping[str, Any]) -> Any:
    """Return a content with one or two changes at any place: a value replaced, exchanged, left out, put in."""
    changed = copy.deepcopy(draw(contents) if isinstance(contents, st.SearchStrategy) else contents)
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        if not (inner := [path for path in places(changed) if path]):
            break
        path = draw(st.sampled_from(inner))
        target = changed
        for key in path[:-1]:
            target = target[key]
        act = draw(st.sampled_from(("replace", "near", "near", "exchange", "drop", "more")))
        value = target[path[-1]]
        if act == "drop":
            del target[path[-1]]
        elif act == "near" and isinstance(value, int | float) and not isinstance(value, bool):
            near = (value + 1, value - 1, -value, value + 0.5, value * 10**6, math.inf, str(value))
            target[path[-1]] = draw(st.sampled_from(near))
        elif act in ("near", "exchange"):  # with one beside it
            other = draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
            target[path[-1]], target[other] = target[other], value
        elif act == "more" and isinstance(target, list):
            target.insert(path[-1], copy.deepcopy(value))
        elif act == "more":
            target[draw(TEXT)] = draw(JSON)
        else:
            target[path[-1]] = draw(JSON)
    return changed


@st.composite
def cuts(draw: Callable, whole: bytes) -> bytes:
    """Return bytes of which up to three stretches are replaced by others, or are left out."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        content[start : start + draw(st.sampled_from((0, 1, 1, 4, 40, len(content))))] = draw(st.binary(max_size=8))
    return bytes(content)
