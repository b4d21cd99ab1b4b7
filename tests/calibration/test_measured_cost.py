"""MACs of modules that are not ours, and what is said where layers hold few of them."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import l2c
from l2c.calibration.cost import count_macs
from l2c.calibration.measured_cost import _plain_attention, covered_share, macs_of


class TwoParts(nn.Module):
    """A layer of 9 MACs a place, beside `others` more of them."""

    def __init__(self, others):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.rest = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(others))

    def forward(self, x, t):
        x = x + self.layer(x)
        for part in self.rest:
            x = x + part(x)
        return x


@pytest.mark.parametrize(("others", "share"), [(0, 100), (1, 50), (3, 25)])
def test_layers_that_hold_few_of_the_macs_are_said(others, share, caplog):
    backbone = l2c.wrap(TwoParts(others), ["layer"], input_shape=(3, 2, 2))
    cost = count_macs(backbone)
    held = cost.layers[0]
    assert held == 9 * 4
    assert covered_share(backbone.layers, lambda: backbone(torch.zeros(1, 3, 2, 2), torch.zeros(1))) == share / 100
    said = f"the 1 layers of TwoParts hold {share} % of the MACs of an evaluation; no graph of them saves more"
    assert [message for message in caplog.messages if "MACs" in message] == ([said] if share < 80 else [])


class Masked(nn.Module):
    """Attention that leaves blocks out, by a kernel that torch's counter does not know."""

    def forward(self, x, t):
        return flex_attention.flex_attention(x, x, x, block_mask="none of the future")


def test_attention_under_masks_of_blocks_is_counted_as_whole(monkeypatch):
    def kernel(query, key, value, *, block_mask, enable_gqa=False):  # torch's own needs its compiler
        return "of the kernel"

    monkeypatch.setattr(flex_attention, "flex_attention", kernel)
    model, x, results = Masked(), torch.randn(1, 2, 16, 8), []
    assert macs_of([], lambda: model(x, None)) == ((), 2 * 2 * 16 * 16 * 8)
    assert flex_attention.flex_attention is kernel
    with _plain_attention():
        torch.testing.assert_close(model(x, None), scaled_dot_product_attention(x, x, x))
        thread = threading.Thread(target=lambda: results.append(model(x, None)))  # another thread has its own
        thread.start()
        thread.join()
    assert results == [model(x, None)] == ["of the kernel"]
