"""Wrong values for every setting of every command, generated from the settings' declared rules.

Validation in process, without anything that a command loads: one sentence each, none accepted.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from wrong_settings import BASES, cases, composed

from l2c.commands.frame.settings import SETTINGS_OF, checked
from l2c.io.settings import full_name
from l2c.training.settings import THREADS


def put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


def test_no_wrong_value_is_accepted_and_each_gets_one_sentence():
    count, settings = 0, set()
    for command, _, content, path, value in cases():
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
        ("calibrate", "num_threads=0", f"num_threads must be a whole number >= 1 and <= {THREADS} or null, got 0"),
        ("evaluate", "num_threads=513", f"num_threads must be a whole number >= 1 and <= {THREADS} or null, got 513"),
        ("sample_many", "shard_size=-1", "shard_size must be a whole number >= 1, got -1"),
        ("sample", "cfg_scale=nan", "cfg_scale must be a number >= 0 and <= 1000 or null, got nan"),
        ("compare", "methods.gram={max_span: 0}", "methods.gram.max_span must be a whole number >= 1 or null, got 0"),
        (
            "sample",
            "labels=[]",
            "labels must be a list of at least one item, each a whole number >= 0 or null, got",
        ),
        (
            "calibrate",
            "model.layers=[]",
            "model.layers must be a list of at least one item, each output or null, got",
        ),
        ("sample", "num_evaluations=4097", "num_evaluations must be a whole number >= 1 and <= 4096 or null, got 4"),
        (
            "calibrate",
            "solver.num_evaluations=4097",
            "solver.num_evaluations must be a whole number >= 1 and <= 40",
        ),
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
