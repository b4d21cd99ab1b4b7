"""Wrong values for every setting of every command, generated from the settings' declared rules.

Validation in process, without anything that a command loads: one sentence each, none accepted.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from l2c.commands.frame.settings import SETTINGS_OF, checked
from l2c.io.bundled import project_folder
from l2c.io.settings import RULE, Anything, Either, Flag, Items, Number, Rule, Settings, Table, Text, full_name
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


def cases() -> Iterator[tuple[str, dict[str, Any], tuple[str, ...], Any]]:
    for command, overrides in BASES:
        content = composed(command, *overrides)
        for path, rule in rules_of(command, content):
            for value in (*TRAPS, *MORE):
                if not allowed(rule, value):
                    yield command, content, path, value


def put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


def test_no_wrong_value_is_accepted_and_each_gets_one_sentence():
    count, settings = 0, set()
    for command, content, path, value in cases():
        count += 1
        settings.add((command, path))
        try:
            checked(command, put(content, path, value))
        except ValueError as error:
            sentence = str(error)
            assert not set("\n\0") & set(sentence), sentence
            name = full_name(".".join(path[:-1]), path[-1])
            assert name in sentence or path[-1] in ("name",), (name, sentence)
            continue
        pytest.fail(f"{command}: {'.'.join(path)}={value!r} was accepted")
    assert count >= 1000, count
    assert len(settings) > 200


def test_all_defaults_are_allowed():
    for command, overrides in BASES:
        checked(command, composed(command, *overrides))


@pytest.mark.parametrize("command", SETTINGS_OF)
def test_unknown_settings_are_refused(command):
    content = composed(command)
    with pytest.raises(ValueError, match="unknown setting sead"):
        checked(command, {**content, "sead": 1})
    for name in SETTINGS_OF[command][1]:
        if isinstance(content.get(name), dict) and name != "policy":
            with pytest.raises(ValueError, match=f"unknown setting {name}.colour"):
                checked(command, put(content, (name, "colour"), 1))


@pytest.mark.parametrize(
    ("command", "override", "sentence"),
    [
        ("train_router", "router.threshold=2", "router.threshold must be a number >= 0 and <= 1, got 2"),
        ("train_router", "router.threshold=-1", "router.threshold must be a number >= 0 and <= 1, got -1"),
        ("train_router", "router.label_dropout=2", "router.label_dropout must be a number >= 0 and <= 1"),
        ("train_router", "router.clamp=-1", "router.clamp must be a number > 0, got -1"),
        ("train_router", "router.penalty=nan", "router.penalty must be a number >= 0, got nan"),
        ("train_router", "solver.num_evaluations=0", "solver.num_evaluations must be a whole number >= 1"),
        ("train_router", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be a whole"),
        ("sample", "num_images=9223372036854775807", "num_images must be a whole number >= 1 and <= 1000000, got 9"),
        (
            "train_router",
            "trainer.max_steps=4611686018427387904",
            "trainer.max_steps must be a whole number below 2147",
        ),
        (
            "train_router",
            "router.init=1e31",
            "router.init must be a number or normal (numbers of at most 1e30), got 1e+31",
        ),
        ("train_router", "router.clamp=1e31", "router.clamp must be a number > 0 (numbers of at most 1e30), got 1e"),
        ("train_router", "seed=-1", "seed must be a whole number >= 0"),
        ("calibrate", "measure=[]", "measure must be a list of at least one item, each changes or responses"),
        (
            "calibrate",
            "responses.num_probes=0",
            "responses.num_probes must be a whole number >= 1 and <= 1000, got 0",
        ),
        ("calibrate", "num_threads=0", "num_threads must be a whole number >= 1 and <= 512 or null, got 0"),
        ("sample_many", "shard_size=-1", "shard_size must be a whole number >= 1, got -1"),
        ("sample", "cfg_scale=nan", "cfg_scale must be a number >= 0 and <= 1000 or null, got nan"),
        ("compare", "methods.gram={max_span: 0}", "methods.gram.max_span must be a whole number >= 1 or null, got 0"),
        ("make_graph", "policy.routed=never", "policy.routed must be auto, alternate or all, got 'never'"),
    ],
)
def test_the_sentences(command, override, sentence):
    with pytest.raises(ValueError) as refusal:
        checked(command, composed(command, override))
    assert sentence in str(refusal.value)


def test_the_same_check_holds_in_python():
    from l2c.sampling.solver_settings import SolverSettings
    from l2c.training.routers.settings import RouterSettings, RouterTraining

    with pytest.raises(ValueError, match=r"router\.threshold must be"):
        RouterSettings(threshold=2)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        RouterTraining(solver=SolverSettings(name="ddim"), seed=-1)
