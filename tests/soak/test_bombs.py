"""Pickles that run a command: none runs, wherever a file of a stranger is read."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import l2c
from l2c.backbones.weights import load_weights
from l2c.calibration.measurements import Measurements
from l2c.evaluation.scores.features import InceptionFeatures
from l2c.evaluation.scores.reference import load_reference, open_images
from l2c.integrations.l2c_routers import import_l2c_router
from l2c.policies.methods.ranking import top_k
from l2c.testbeds.emoji import emoji
from l2c.training.checkpoints import WholeCheckpoints, read_checkpoint


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, call=os.mkdir, *arguments):
        self.call, self.arguments = call, arguments or ("bomb",)

    def __reduce__(self):
        return self.call, self.arguments


class Late:
    """The same by way of a state, which is set after the object is made."""

    def __reduce__(self):
        return argparse.Namespace, (), {"a": Bomb()}


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def arrays(**content):
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def renamed_archive():
    """Return an archive whose array is a bare pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("arr_0.npy", "mu.npy", "sigma.npy", "images.npy"):
            archive.writestr(name, pickle.dumps(Bomb()))
    return buffer.getvalue()


def array(value):
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


OBJECTS = np.array([Bomb()], dtype=object)
BOMBS = {
    "raw": pickle.dumps(Bomb()),
    "raw, protocol 0": pickle.dumps(Bomb(), protocol=0),
    "in a state dict": saved({"w": torch.ones(1), "x": Bomb()}),
    "legacy form": saved({"w": torch.ones(1), "x": Bomb()}, _use_new_zipfile_serialization=False),
    "as a key": saved({"ema": OrderedDict([("w", Bomb())])}),
    "in a namespace": saved({"args": argparse.Namespace(a=Bomb())}),
    "in a state": saved({"args": Late()}),
    "eval": saved({"x": Bomb(eval, "__import__('os').mkdir('bomb')")}),
    "getattr": saved({"x": Bomb(getattr, Bomb(__import__, "os"), "mkdir")}),
    "array": array(OBJECTS),
    "archive": arrays(arr_0=OBJECTS, mu=OBJECTS, sigma=OBJECTS, images=OBJECTS),
    "archive of a bare pickle": renamed_archive(),
}
READERS = {
    "weights": lambda path: load_weights(path("w.pt")),
    "weights called safetensors": lambda path: load_weights(path("w.safetensors")),
    "backbone": lambda path: l2c.load_backbone("dit_digits", checkpoint=path("w.pt")),
    "checkpoint": lambda path: read_checkpoint(path("last.ckpt")),
    "checkpoint of Lightning": lambda path: WholeCheckpoints().load_checkpoint(path("last.ckpt")),
    "routers": lambda path: import_l2c_router(
        path("r.pt"), "dit_digits", solver="ddim", num_evaluations=4, threshold=0.1
    ),
    "graph": lambda path: l2c.CacheGraph.load(path("g.json")),
    "calibration": lambda path: Measurements.load(path("c.safetensors")),
    "images": lambda path: list(open_images(path("i.npz")).batches(1)),
    "reference": lambda path: load_reference(path("r.npz"), None),
    "emoji": lambda path: emoji(path("e.npz")),
    "Inception": lambda path: InceptionFeatures(path("inception.pth")),
    "Inception called safetensors": lambda path: InceptionFeatures(path("inception.safetensors")),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_pickle_runs(reader, tmp_path, monkeypatch, counted):
    monkeypatch.chdir(tmp_path)
    for name, content in BOMBS.items():

        def path(file, content=content):
            (tmp_path / file).write_bytes(content)
            return tmp_path / file

        with pytest.raises(Exception) as refusal:
            READERS[reader](path)
        assert not (tmp_path / "bomb").exists(), (reader, name)
        if reader != "checkpoint of Lightning":  # Lightning reads it after `read_checkpoint` alone
            assert isinstance(refusal.value, (ValueError, OSError)), (reader, name, refusal.value)
    counted(tried=len(BOMBS), ran=0)


def test_no_pickle_of_scores_runs(tmp_path, make_dit, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from l2c.policies.context import PolicyContext

    context = PolicyContext.of(l2c.Sampler(make_dit(), solver="ddim", num_evaluations=4))
    texts = np.array([["a"] * context.blank.num_layers] * 4)
    for name, content in {**BOMBS, "text": array(texts)}.items():
        (tmp_path / "s.npy").write_bytes(content)
        with pytest.raises(ValueError, match="holds no array of numbers"):
            top_k(context, budget=0.75, score=str(tmp_path / "s.npy"))
        assert not (tmp_path / "bomb").exists(), name


def test_the_bombs_are_live(tmp_path, monkeypatch):
    """Each of them runs where it is loaded without care."""
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "in a state dict", "in a state", "legacy form"):
        content = BOMBS[name]
        load = pickle.loads if name == "raw" else lambda data: torch.load(io.BytesIO(data), weights_only=False)
        load(content)
        assert (tmp_path / "bomb").is_dir(), name
        (tmp_path / "bomb").rmdir()
