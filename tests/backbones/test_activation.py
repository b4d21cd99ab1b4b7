"""GELU without the tanh, against torch's."""

from __future__ import annotations

import pytest
import torch

from l2c.backbones.activation import GELUTanh


def test_it_is_torchs_gelu_up_to_rounding():
    x = torch.linspace(-20, 20, 40_001)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    with torch.no_grad():
        torch.testing.assert_close(GELUTanh()(x).double(), exact, rtol=2e-6, atol=1e-6)
        assert torch.equal(GELUTanh()(torch.tensor([0.0, -1e4, 1e4])), torch.tensor([0.0, -0.0, 1e4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_with_gradients_and_in_other_precisions_it_is_torchs_own(dtype):
    x = torch.randn(50, dtype=dtype, requires_grad=True)
    assert torch.equal(GELUTanh()(x), torch.nn.functional.gelu(x, approximate="tanh"))
    with torch.no_grad():
        GELUTanh()(x)  # leaves its input as it is
    GELUTanh()(x).sum().backward()
    assert x.grad.isfinite().all()
