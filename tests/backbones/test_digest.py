"""Fingerprints: remembered while weights stay, worked out anew after any change, the same on every copy."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import l2c
from l2c.backbones import backbone as module
from l2c.backbones.backbone import fingerprint
from l2c.backbones.digest import weights_checksum, weights_digest


@pytest.fixture
def digests(monkeypatch):
    """Count how often the whole digest is worked out."""
    calls = []
    monkeypatch.setattr(module, "weights_digest", lambda weights: calls.append(1) or weights_digest(weights))
    return calls


def merged(weight):
    weight.data += 0.01 * torch.randn_like(weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(1.5),
        lambda weight: weight.data.mul_(1.5),  # leaves the version counter as it is
        merged,
        lambda weight: weight.data.view(-1)[5:6].add_(1e-3),
        lambda weight: weight.data.copy_(torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8).dequantize()),
        lambda weight: setattr(weight, "data", weight.data.clone() + 1),
        lambda weight: weight.data.copy_(weight.data.roll(len(weight) // 2, 0)),
        lambda weight: weight.data.copy_(weight.data.T.reshape(weight.shape)),
    ],
    ids=[
        *("in place", "through .data", "merged adapter", "one value", "quantised and back", "other data"),
        *("heads change places", "channels change places"),
    ],
)
def test_changes_after_loading_are_noticed(make_dit, change):
    net = make_dit()
    before = fingerprint(net)
    change(net.blocks[1].mlp.fc1.weight)
    assert fingerprint(net) == weights_digest(net.state_dict()) != before


def test_what_did_not_change_is_not_digested_again(make_dit, digests):
    net = make_dit()
    found = {fingerprint(net), fingerprint(net), fingerprint(copy.deepcopy(net))}
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    assert found == {fingerprint(net)}
    assert len(digests) == 1


def test_a_cast_keeps_the_fingerprint_of_the_weights_before_it(make_dit):
    net = make_dit()
    before = weights_digest(net.state_dict())
    half = copy.deepcopy(net).bfloat16()
    assert fingerprint(half) == fingerprint(copy.deepcopy(half)) == before
    half.blocks[0].mlp.fc1.weight.data.mul_(2)
    assert fingerprint(half) != before


def test_wrapped_modules_follow_the_same_rule(make_dit):
    net = make_dit()
    wrapped = l2c.wrap(net, ["blocks.*.attn"], labels="y", num_labels=5)
    before = fingerprint(wrapped)
    net.blocks[0].attn.proj.weight.data.mul_(2)
    assert fingerprint(wrapped) != before


class Quantised(torch.Tensor):
    """A weight of integers and a scale, as quantising libraries make them."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    def __tensor_flatten__(self):
        return ["values", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        raise NotImplementedError(func)


def test_quantised_weights_are_digested_from_what_is_stored():
    values, scale = torch.arange(6, dtype=torch.int8), torch.tensor(0.5)
    found = [
        weights_digest({"w": Quantised(v, s)}) for v, s in ((values, scale), (values + 1, scale), (values, 2 * scale))
    ]
    assert len(set(found)) == 3
    assert weights_digest({"w": Quantised(values.clone(), scale)}) == found[0]
    assert weights_checksum({"w": Quantised(values, scale)}) != weights_checksum({"w": Quantised(values + 1, scale)})


def test_weights_without_readable_values_are_refused():
    with torch.device("meta"):
        weights = nn.Linear(2, 2).state_dict()
    with pytest.raises(ValueError, match=r"the weight bias is on the meta device, .* load plain weights"):
        weights_digest(weights)
    with pytest.raises(ValueError, match=r"of the kind torch\.qint8"):
        weights_checksum({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,)])
def test_any_plain_tensor_has_a_checksum(dtype, shape):
    weight = torch.ones(shape).to(dtype)
    assert weights_checksum({"w": weight}) == weights_checksum({"w": weight.clone()})
    if weight.numel():
        assert weights_checksum({"w": weight}) != weights_checksum({"w": torch.zeros_like(weight)})


def test_the_digest_of_any_module_is_remembered_while_its_weights_stay(monkeypatch):
    from l2c.backbones import digest

    layer, calls = nn.Linear(3, 2), []
    monkeypatch.setattr(digest, "weights_digest", lambda weights: calls.append(1) or weights_digest(weights))
    assert digest.known_digest(layer) == digest.known_digest(layer) == weights_digest(layer.state_dict())
    assert calls == [1]
    layer.weight.data.mul_(1.5)
    assert digest.known_digest(layer) == weights_digest(layer.state_dict())
    assert calls == [1, 1]
