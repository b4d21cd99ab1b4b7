"""Files of weights that strangers wrote: taken where their values can be, else refused in one sentence."""

from __future__ import annotations

import math

import pytest
import torch

from l2c.backbones.weights import load_strict, load_weights


def cyclic():
    content = {}
    content["ema"] = content
    return content


def each(change):
    return lambda good: {name: change(value) for name, value in good.items()}


def matrices(change):
    return lambda good: {name: change(value) if value.ndim == 2 else value for name, value in good.items()}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda good: cyclic(), "holds no state dict of tensors"),
        (lambda good: {0: torch.ones(1)}, "holds no state dict of tensors"),
        (lambda good: {"state_dict": {**good, ("a", 1): torch.ones(1)}}, "holds no state dict of tensors"),
        (each(lambda value: value.double() * 0 + 1e300), "numbers that are not finite in"),
        (each(lambda value: value * math.nan), "numbers that are not finite in"),
        (each(lambda value: (value * math.nan).to(torch.float8_e4m3fn)), "numbers that are not finite in"),
        (
            matrices(lambda value: value.to_sparse()),
            "torch.sparse_coo, on cpu, which cannot be loaded into torch.float32",
        ),
        (each(lambda value: value.to(torch.complex64)), "as torch.complex64"),
        (each(lambda value: value.to(torch.int64)), "as torch.int64"),
        (each(lambda value: value.to(torch.bool)), "as torch.bool"),
        (each(lambda value: value.to("meta")), "on meta, which cannot be loaded"),
    ],
    ids=[
        "cycle",
        "numbers as keys",
        "tuple as key",
        "too large",
        "nan",
        "8-bit nan",
        "sparse",
        "complex",
        "int",
        "bool",
        "meta",
    ],
)
def test_what_cannot_be_taken_is_refused(make_dit, tmp_path, make, sentence):
    net, path = make_dit(), tmp_path / "w.pt"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(make(before), path)
    with pytest.raises(ValueError) as refusal:
        load_strict(net, load_weights(path), str(path))
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_other_floating_point_types_are_taken(make_dit, tmp_path, dtype):
    net = make_dit()
    torch.save({"model": {name: value.to(dtype) for name, value in net.state_dict().items()}}, tmp_path / "w.pt")
    load_strict(net, load_weights(tmp_path / "w.pt"), "w.pt")
    assert all(torch.equal(value, value.to(dtype).float()) for value in net.state_dict().values())
