"""The objective by hand, and where its gradients go."""

from __future__ import annotations

import pytest
import torch

from l2c.diffusion import make_solver, schedule_of
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import DataPairs, Pair
from l2c.training.routers.routers import Routers


@pytest.fixture
def pair(backbone):
    conventions = backbone.conventions
    solver = make_solver("ddim", schedule_of(conventions), 6)
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn((3, *backbone.input_shape), generator=generator) for _ in range(2))
    return DataPairs(backbone, solver, (3,)).pair(x_0, noise, torch.tensor([0, 3, 5]), 3)


@pytest.mark.parametrize("error", ["mean", "sum"])
def test_loss_by_hand(backbone, pair, error):
    n = backbone.num_layers
    weights = torch.linspace(0.5, 2.0, n)
    row = torch.linspace(0.1, 0.9, n)
    loss = LearningToCache(backbone, penalty=0.3, layer_weights=weights, error=error)(pair, row)
    student, _ = backbone.forward_cached(pair.x, pair.t, pair.y, row, pair.cache)
    squared = (student - pair.teacher) ** 2
    reduced = [getattr(image, error)().item() for image in squared]
    penalty = sum(w * r for w, r in zip(weights.tolist(), row.tolist(), strict=True))
    assert loss.per_sample.tolist() == pytest.approx(reduced, rel=1e-5)
    assert loss.error.item() == pytest.approx(sum(reduced) / 3, rel=1e-5)
    assert loss.penalty.item() == pytest.approx(penalty, rel=1e-5)
    assert loss.loss.item() == pytest.approx(sum(reduced) / 3 + 0.3 * penalty, rel=1e-5)


def test_error_counts_variance_channels_too(make_dit):
    net = make_dit()
    full = torch.randn(2, 8, 8, 8)
    pair = Pair(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2).long(), (None,) * 4, full)
    net.forward_cached = lambda *_: (torch.cat([full[:, :4], full[:, 4:] + 1], dim=1), ())
    loss = LearningToCache(net, penalty=0.0, layer_weights=torch.ones(4))(pair, torch.ones(4))
    torch.testing.assert_close(loss.per_sample, torch.full((2,), 0.5))


def test_computing_everything_costs_the_penalty_alone(backbone, pair):
    n = backbone.num_layers
    objective = LearningToCache(backbone, penalty=0.01, layer_weights=torch.ones(n))
    loss = objective(pair, torch.ones(n))
    assert loss.error.item() == 0.0
    assert loss.loss.item() == pytest.approx(0.01 * n)
    reused = objective(pair, torch.zeros(n))
    assert reused.error.item() > 1e-4
    assert reused.penalty.item() == 0.0


def test_only_the_visited_router_gets_a_gradient(backbone, pair):
    routers = Routers((1, 3, 5), backbone.num_layers, init=0.0)
    objective = LearningToCache(backbone, penalty=0.0, layer_weights=torch.ones(backbone.num_layers))
    objective(pair, routers.row(3)).loss.backward()
    assert (routers.logits["3"].grad != 0).all()
    assert routers.logits["1"].grad is None
    assert routers.logits["5"].grad is None
    assert all(p.grad is None for p in backbone.parameters())


def test_penalty_pushes_every_logit_down(backbone, pair):
    routers = Routers((3,), backbone.num_layers, init=0.0)
    weights = torch.linspace(1, 2, backbone.num_layers)
    loss = LearningToCache(backbone, penalty=0.3, layer_weights=weights)(pair, routers.row(3))
    (loss.loss - loss.error).backward()
    torch.testing.assert_close(routers.logits["3"].grad, 0.3 * weights / 4)  # sigmoid'(0) = 1/4


def test_bad_settings_are_refused(backbone):
    weights = torch.ones(backbone.num_layers)
    with pytest.raises(ValueError, match=r"router.error must be mean or sum, got 'max'"):
        LearningToCache(backbone, penalty=0.1, layer_weights=weights, error="max")
    with pytest.raises(ValueError, match=r"penalty must be a finite number .*, got -0.1"):
        LearningToCache(backbone, penalty=-0.1, layer_weights=weights)
