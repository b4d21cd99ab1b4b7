"""Wrong values for every setting of every command, generated from the settings' declared rules."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from l2c.commands.frame.settings import SETTINGS_OF, checked
from l2c.io.bundled import project_folder
from l2c.io.settings import RULE, Anything, Either, Flag, Items, Number, Rule, Settings, Table, Text
from l2c.policies.settings import OPTIONS, BudgetRule

TRAPS = (
    None,
    "abc",
    "",
    "1e-3x",
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    2,
    -1e31,
    1e38,
    1e308,
    True,
    [],
    [None],
    ["abc"],
)
MORE = ({}, {"x": 1}, [math.nan], 1.5, 10**30, "a\0b")


def allowed(rule: Rule, value: Any) -> bool:
    """Say on one's own, from a rule's attributes, whether it allows a value."""
    if value is None:
        return rule.optional
    if isinstance(rule, Either):
        return any(allowed(one, value) for one in rule.rules)
    if isinstance(rule, Flag):
        return type(value) is bool
    if isinstance(rule, Text):
        plain = type(value) is str and value != "" and "\0" not in value
        return plain and (not rule.choices or value in rule.choices)
    if isinstance(rule, Number):
        if type(value) not in ((int,) if rule.whole else (int, float)) or not abs(value) <= 1e30:
            return False
        if rule.whole and abs(value) >= 2**63:
            return False
        limits = (
            rule.at_least is None or value >= rule.at_least,
            rule.at_most is None or value <= rule.at_most,
            rule.above is None or value > rule.above,
            rule.below is None or value < rule.below,
        )
        return all(limits)
    if isinstance(rule, Items):
        if type(value) is not list:
            return rule.single and allowed(rule.item, value)
        return (bool(value) or not rule.nonempty) and all(v is not None and allowed(rule.item, v) for v in value)
    if isinstance(rule, Table):
        names = rule.names is None or (type(value) is dict and set(value) <= set(rule.names))
        return type(value) is dict and names and all(allowed(rule.item, v) for v in value.values())
    if isinstance(rule, BudgetRule):
        if type(value) is str:
            return bool(re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?x?", value)) and float(value.rstrip("x")) > 0
        return type(value) in (int, float) and 0 < value < math.inf
    assert isinstance(rule, Anything)
    return "nan" not in repr(value) and "inf" not in repr(value)


def right_value(rule: Rule, source: random.Random) -> Any:
    """Return a value that a rule allows, small enough for a test to be quick."""
    if rule.optional and source.random() < 0.2:
        return None
    if isinstance(rule, Either):
        return right_value(source.choice(rule.rules), source)
    if isinstance(rule, Flag):
        return source.random() < 0.5
    if isinstance(rule, Text):
        return source.choice(rule.choices or ("zzz", "a b", "\u00fc", "auto"))
    if isinstance(rule, BudgetRule):
        return source.choice((0.5, 1, 3, "2x", 1e-9, 1e6))
    if isinstance(rule, Items):
        least = 1 if rule.nonempty else 0
        return [right_value(rule.item, source) or 1 for _ in range(source.randint(least, 2))]
    if isinstance(rule, Table):
        return {name: right_value(rule.item, source) for name in (rule.names or ())[:2]}
    if isinstance(rule, Number):
        low = rule.at_least if rule.at_least is not None else rule.above if rule.above is not None else -1
        steps = (0, 1, 2, 5) if rule.whole else (0, 1e-6, 0.1, 0.5, 1, 1.5)
        fitting = [value for value in (low + step for step in steps) if allowed(rule, value)]
        return source.choice(fitting)
    assert isinstance(rule, Anything)
    return source.choice((1, "zzz", {}))


def composed(command: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        cfg = compose(command, list(overrides))
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return content


BASES = [
    *((command, ()) for command in SETTINGS_OF),
    ("train_router", ("router=budget", "data=noise")),
    ("train_router", ("router=harmonica", "data=noise")),
    ("train_router", ("data=imagenet", "router=l2c_summed", "logger=wandb")),
    ("calibrate", ("backend=diffusers", "pipeline=folder")),
    ("sample_many", ("experiment=l2c_dit_xl2_ddim20",)),
    *(("make_graph", (f"policy={policy}",)) for policy in OPTIONS),
]


def rules_of(command: str, content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Rule]]:
    """Yield the path of each setting and its rule."""
    check = checked(command, content)
    groups = {(): check.top, **{(name,): group for name, group in check.groups.items()}}
    for path, group in groups.items():
        if isinstance(group, Settings):
            yield from (((*path, entry.name), entry.metadata[RULE]) for entry in fields(group))  # type: ignore[arg-type]
        else:  # the options of a policy
            yield from (((*path, name), rule) for name, rule in OPTIONS[group["name"]].items() if name in group)


def cases() -> Iterator[tuple[str, tuple[str, ...], dict[str, Any], tuple[str, ...], Any]]:
    """Yield commands, the overrides that choose their groups, all settings, the path of one, a wrong value for it."""
    for command, overrides in BASES:
        content = composed(command, *overrides)
        for path, rule in rules_of(command, content):
            for value in (*TRAPS, *MORE):
                if not allowed(rule, value):
                    yield command, overrides, content, path, value
