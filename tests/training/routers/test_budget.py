"""Routers at a given cost."""

import pytest
import torch

from l2c.calibration.cost import Cost, count_macs
from l2c.training.routers.budget import BudgetedLearningToCache, rank_rows, share_to_remove
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import Pair
from l2c.training.routers.routers import Routers, straight_through

COST = Cost(layers=(10, 20, 10, 20), fixed=40)  # 100 an evaluation


@pytest.mark.parametrize("budget", [3.4, 0.85, "0.85", f"{4 / 3.4}x"])
def test_all_forms_of_a_budget_agree(budget):
    """The two routed evaluations of four have 120 of 400 MACs in layers; to remove half of those leaves 340."""
    assert share_to_remove(COST, budget, num_evaluations=4, num_routed=2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (None, r"needs router.budget: give a share of the uncached MACs \(budget=0.4\)"),
        (
            "2x",
            r"2 evaluations' worth .* out of reach with 2 routed evaluations of 4; .* 2.80..4 \(0.70..1 as a share",
        ),
        (5, r"out of reach .* 1x..1.42x as a speed-up"),
        (1, "router.budget=1 leaves routers nothing to learn; choose one between 2.80 and 4"),
        (2.8, "leaves routers nothing to learn"),
        (True, "got True"),
    ],
)
def test_impossible_budgets_are_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        share_to_remove(COST, budget, num_evaluations=4, num_routed=2)


@pytest.mark.parametrize("remove", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_ranked_rows_meet_the_budget_and_take_the_least_wanted_first(remove):
    macs = (3, 7, 3, 7, 3, 7)
    weights = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    rows = rank_rows(weights, (1, 3, 5, 7, 9), 10, macs, remove)
    removed = sum(m for row in rows for m, bit in zip(macs, row, strict=True) if not bit)
    assert abs(removed - remove * 5 * 30) <= 1.5
    assert all(all(row) for row in rows[::2])
    reused = [float(weights[i, j]) for i in range(5) for j in range(6) if not rows[2 * i + 1][j]]
    attention = [float(weights[i, j]) for i in range(5) for j in (0, 2, 4)]
    assert sorted(attention)[: sum(w in reused for w in attention)] == sorted(w for w in reused if w in attention)


def test_the_penalty_rises_while_too_much_is_computed_and_falls_otherwise(make_dit):
    net = make_dit()
    cost = count_macs(net)
    weights = torch.tensor(cost.layers) / sum(cost.layers)
    objective = BudgetedLearningToCache(net, cost=cost, layer_weights=weights, remove=0.5)
    seen = []
    for init in (3.0, 3.0, -3.0, -3.0):
        objective.after_step(Routers((1, 3), 4, init=init), 1e-3, 1)
        seen.append(objective.penalty)
    assert 1e-3 < seen[0] < seen[1]
    assert seen[3] < seen[2] < 1e-3
    other = BudgetedLearningToCache(net, cost=cost, layer_weights=weights, remove=0.5)
    other.load_state(objective.state())
    assert other.state() == objective.state()


def test_straight_through_has_hard_values_and_soft_gradients(make_dit, make_batch):
    soft = torch.tensor([0.2, 0.8], requires_grad=True)
    hard = straight_through(soft, 0.5)
    assert hard.tolist() == [0.0, 1.0]
    hard.sum().backward()
    assert soft.grad.tolist() == [1.0, 1.0]
    net = make_dit()
    x, t, y = make_batch(net)
    _, cache = net.forward_cached(x, t, y, (True,) * 4)
    later = t - 1
    pair = Pair(x, later, y, cache, net(x, later, y))
    objective = LearningToCache(net, penalty=1.0, layer_weights=torch.ones(4), straight_through=True)
    row = torch.tensor([0.9, 0.2, 0.7, 0.6], requires_grad=True)
    loss = objective(pair, row)
    static, _ = net.forward_cached(x, later, y, (True, False, True, True), cache)
    torch.testing.assert_close(loss.error, (static - pair.teacher).square().mean())
    assert float(loss.penalty.detach()) == pytest.approx(2.4)  # the penalty stays soft
    loss.loss.backward()
    assert row.grad.abs().min() > 0


def test_recomputed_activations_change_nothing(backbone, make_batch):
    x, t, y = make_batch(backbone)
    _, cache = backbone.forward_cached(x, t, y, (True,) * backbone.num_layers)
    gradients = []
    for recompute in (False, True):
        backbone.recompute_activations = recompute
        row = torch.full((backbone.num_layers,), 0.3, requires_grad=True)
        backbone.forward_cached(x, t - 1, y, row, cache)[0].square().mean().backward()
        gradients.append(row.grad)
    assert torch.equal(*gradients)
