"""Checkpoints to resume from: those of this run are taken, others and damaged ones refused in one sentence."""

from __future__ import annotations

import io
import math
import os
import pickle

import pytest
import torch
from torch import nn

from l2c.training.checkpoints import RUN, VERSION, WholeCheckpoints, _marked, check_checkpoint

SETTINGS = {"router.penalty": 1e-3, "seed": 0, "router.reuse": "hold", "sizes": (1, 2)}
WEIGHTS = {"a": torch.ones(3), "b": torch.ones(2, 2)}


def content():
    """Return what Lightning saves, with the state of a real optimiser."""
    parameters = [nn.Parameter(value.clone()) for value in WEIGHTS.values()]
    optimiser = torch.optim.AdamW(parameters)
    sum(p.sum() for p in parameters).backward()
    optimiser.step()
    return {
        "state_dict": {f"net.{name}": value for name, value in WEIGHTS.items()},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [],
        "loops": {},
        "global_step": 5,
        "epoch": 0,
        RUN: {"version": VERSION, "settings": {**SETTINGS, "sizes": [1, 2]}},
    }


def check(path, **changes):
    check_checkpoint(path, "net.", WEIGHTS, **{"settings": SETTINGS, "max_steps": 10, **changes})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
    return path


def test_this_runs_checkpoint_is_taken(saved):
    check(saved)
    assert WholeCheckpoints().load_checkpoint(saved)["global_step"] == 5


def test_settings_that_differ_are_named(saved):
    other = {**SETTINGS, "router.penalty": 1e-2, "router.reuse": "linear"}
    with pytest.raises(
        ValueError,
        match=r"belongs to another run: router\.penalty is 0\.001 there, 0\.01 here, router\.reuse is hold there, "
        r"linear here; resume with its settings",
    ):
        check(saved, settings=other)
    with pytest.raises(ValueError, match="colour is not set there, red here"):
        check(saved, settings={**SETTINGS, "colour": "red"})


def test_fewer_steps_than_were_made_are_refused(saved):
    with pytest.raises(ValueError, match=r"has 5 steps behind it, more than trainer\.max_steps=4; raise"):
        check(saved, max_steps=4)
    check(saved, max_steps=5)


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("bomb",)


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "bomb").exists()


def without(key):
    return {name: value for name, value in content().items() if name != key}


def nested(levels, around):
    """Return a value inside that many others."""
    value = 1
    for _ in range(levels):
        value = around(value)
    return value


def broken(kind):
    good = content()
    return {
        "no optimiser": {**good, "optimizer_states": []},
        "no states": without("optimizer_states"),
        "other optimiser": {
            **good,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": []}],
        },
        "optimiser of text": {**good, "optimizer_states": ["adam"]},
        "no version": without(RUN),
        "version 0": {**good, RUN: {"version": 0, "settings": SETTINGS}},
        "no step": without("global_step"),
        "step of text": {**good, "global_step": "5"},
        "loops of text": {**good, "loops": "none"},
        "a shape": {**good, "state_dict": {"net.a": torch.ones(4), "net.b": torch.ones(2, 2)}},
        "a name": {**good, "state_dict": {"net.a": torch.ones(3), "net.c": torch.ones(2, 2)}},
        "a number for a weight": {**good, "state_dict": {"net.a": 1.0, "net.b": torch.ones(2, 2)}},
        "not finite": {**good, "state_dict": {"net.a": torch.full((3,), math.nan), "net.b": torch.ones(2, 2)}},
        "a list": [1, 2],
        "weights alone": dict(WEIGHTS),
        "a bomb": {**good, "extra": Bomb()},
        "depth": {**good, "extra": nested(200, lambda inner: [inner])},
        "laughs": {**good, "hyper_parameters": nested(60, lambda inner: [inner, inner])},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("no optimiser", "it holds no states of the optimiser"),
        ("no states", "it has no optimizer_states"),
        ("other optimiser", "are those of other weights"),
        ("optimiser of text", "it holds no states of the optimiser"),
        ("no version", "does not say which settings made it"),
        ("version 0", "does not say which settings made it"),
        ("no step", "it has no global_step"),
        ("step of text", "a part of it has another type"),
        ("loops of text", "a part of it has another type"),
        ("a shape", r"belongs to another run: 1 weights are missing, unexpected or of another shape \(a\)"),
        ("a name", r"belongs to another run: 2 weights .* \(b, c\)"),
        ("a number for a weight", r"belongs to another run: 1 weights"),
        ("not finite", "a is not finite"),
        ("a list", "it is no checkpoint"),
        ("weights alone", "it is no checkpoint"),
        ("a bomb", "holds Python objects beside tensors"),
        ("depth", "its members lie 64 levels deep"),
        ("laughs", "its members are more than 200000 mappings and lists"),
    ],
)
def test_foreign_checkpoints_are_refused(tmp_path, kind, sentence):
    path = tmp_path / "last.ckpt"
    buffer = io.BytesIO()
    torch.save(broken(kind), buffer)
    path.write_bytes(_marked(buffer.getvalue()))
    with pytest.raises(ValueError, match=sentence) as refusal:
        check(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_damaged_files_are_refused(saved, tmp_path):
    data = saved.read_bytes()
    for name, bytes_ in {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "one byte": data[:1],
        "text": b"not a checkpoint",
        "raw pickle": pickle.dumps(Bomb()),
        "flipped": bytes(255 - byte for byte in data[:200]) + data[200:],
    }.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(bytes_)
        with pytest.raises(ValueError, match="cannot resume from") as refusal:
            check(path)
        assert "\n" not in str(refusal.value)
    for place in (data.index(torch.ones(3).numpy().tobytes()), len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match="cannot resume from"):
            check(path)
    torch.save(content(), path)
    with pytest.raises(ValueError, match="it is cut short or damaged"):
        check(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        check(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        check(tmp_path)


def test_weights_that_are_not_finite_are_not_written(saved):
    before = saved.read_bytes()
    wrong = content()
    wrong["state_dict"]["net.a"] = torch.full((3,), math.inf)
    with pytest.raises(ValueError, match=r"net\.a is not finite after step 5.*keeps the last good one"):
        WholeCheckpoints().save_checkpoint(wrong, saved)
    assert saved.read_bytes() == before
