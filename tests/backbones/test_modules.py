"""The modules are timm's own, though timm has not run; GELU without the tanh, against torch's."""

import pickle

import pytest
import torch

from l2c.backbones import modules
from l2c.backbones.dit import DiT
from l2c.backbones.modules import GELUTanh


def test_they_are_those_of_timm():
    import timm

    for name in ("Attention", "Mlp", "PatchEmbed"):
        assert getattr(modules, name) is getattr(timm.layers, name)
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert type(network.blocks[0].attn) is modules.Attention
    assert timm.layers.attention.Attention is modules.Attention


def test_a_backbone_of_them_is_pickled():
    backbone = DiT(input_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=3).eval()
    again = pickle.loads(pickle.dumps(backbone))
    x, t, y = torch.randn(1, 4, 4, 4), torch.tensor([3]), torch.tensor([1])
    assert torch.equal(again(x, t, y), backbone(x, t, y))


def test_gelu_is_torchs_up_to_rounding():
    x = torch.linspace(-20, 20, 40_001)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    with torch.no_grad():
        torch.testing.assert_close(GELUTanh()(x).double(), exact, rtol=2e-6, atol=1e-6)
        assert torch.equal(GELUTanh()(torch.tensor([0.0, -1e4, 1e4])), torch.tensor([0.0, -0.0, 1e4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gelu_with_gradients_and_in_other_precisions_it_is_torchs_own(dtype):
    x = torch.randn(50, dtype=dtype, requires_grad=True)
    assert torch.equal(GELUTanh()(x), torch.nn.functional.gelu(x, approximate="tanh"))
    with torch.no_grad():
        GELUTanh()(x)  # leaves its input as it is
    GELUTanh()(x).sum().backward()
    assert x.grad.isfinite().all()
