"""MACs against published numbers and against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import l2c
from l2c.backbones.presets import build_backbone, model_preset
from l2c.calibration.cost import Cost, count_macs


def published(name):
    with torch.device("meta"):
        return count_macs(build_backbone(model_preset(name)))


def test_dit_xl2_costs_what_was_published():
    cost = published("dit_xl2")
    assert cost.evaluation / 1e9 == pytest.approx(118.62, abs=0.005)
    assert len(cost.layers) == 56
    for attention, mlp in zip(cost.layers[::2], cost.layers[1::2], strict=True):
        assert attention / 1e9 == pytest.approx(1.51, abs=0.005)
        assert mlp / 1e9 == pytest.approx(2.72, abs=0.005)
    assert cost.fixed / 1e9 == pytest.approx(0.241, abs=0.0005)
    assert cost.fixed > 28 * 6 * 1152**2  # the modulation


def test_uvit_h2_costs_what_was_published():
    cost = published("uvit_h2")
    assert cost.evaluation / 1e9 == pytest.approx(133.20, abs=0.005)
    assert len(cost.layers) == 58
    skips = 14 * 258 * 2 * 1152**2
    assert skips / 1e9 == pytest.approx(9.59, abs=0.005)
    assert cost.fixed > skips


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dit", {}),
        ("dit", {"learn_sigma": False, "patch_size": 4, "depth": 3}),
        ("uvit", {}),
        ("uvit", {"conv": False, "mlp_time_embed": True, "depth": 4}),
        ("uvit", {"num_classes": -1, "qkv_bias": True}),
    ],
)
def test_counts_equal_pytorchs(kind, changes, make_dit, make_uvit, make_batch, random_rows):
    net = (make_dit if kind == "dit" else make_uvit)(**changes)
    cost = count_macs(net)
    x, t, y = make_batch(net, count=1)
    y = y if net.num_embedded_labels else None
    n = net.num_layers
    _, cache = net.forward_cached(x, t, y, (True,) * n)
    for row in (*random_rows(4, n), (False,) * n):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net.forward_cached(x, t, y, row, cache)
        assert counter.get_total_flops() == 2 * cost.of_row(row)
    assert cost.of_row((True,) * n) == cost.evaluation
    assert cost.of_row((False,) * n) == cost.fixed


def test_trajectories_by_hand():
    cost = Cost(layers=(10, 20, 30, 40), fixed=100)
    graph = l2c.CacheGraph(
        rows=[[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
        layers=list("abcd"),
        timesteps=[3, 2, 1, 0],
        model="m",
        solver="ddim",
    )
    assert cost.evaluation == 200
    assert cost.of_graph(graph) == 200 + 150 + 200 + 100
    assert cost.evaluations_worth(graph) == 3.25
    assert cost.speed_up(graph) == 4 / 3.25


def test_unknown_networks_are_refused():
    with pytest.raises(TypeError, match="cannot count the MACs of a Linear; known are DiT, UViT and wrapped"):
        count_macs(nn.Linear(2, 2))
