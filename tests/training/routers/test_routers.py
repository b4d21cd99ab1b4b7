"""Routers: which evaluations are routed, and that a step moves the visited one alone."""

from __future__ import annotations

import pytest
import torch

from l2c.diffusion import NoiseSchedule, make_solver
from l2c.training.routers.routers import Routers, routed_evaluations


@pytest.mark.parametrize(
    ("solver", "num_evaluations", "expected"),
    [
        ("ddim", 20, tuple(range(1, 20, 2))),
        ("ddpm", 4, (1, 3)),
        ("dpm_solver_2m", 4, (1, 3)),
        ("ddim", 2, (1,)),
        ("ddim", 5, (2, 4)),
        ("ddim", 3, (2,)),
        ("dpm_solver_2s", 20, tuple(range(2, 20, 2))),
        ("dpm_solver_2s", 5, (2, 4)),
        ("dpm_solver_2s", 2, ()),
    ],
)
def test_routed_evaluations(solver, num_evaluations, expected):
    routed = routed_evaluations(make_solver(solver, NoiseSchedule(), num_evaluations).steps)
    assert routed == expected
    assert not any(e - 1 in routed for e in routed)  # each reuses from an evaluation that computes everything


def test_routers_without_a_routed_evaluation_are_refused():
    with pytest.raises(ValueError, match="no evaluation to route"):
        Routers((), 4)


def test_starts():
    assert torch.equal(Routers((1, 3), 4, init=2.0).weights(), torch.sigmoid(torch.full((2, 4), 2.0)))
    drawn = [Routers((1, 3), 4, init="normal", seed=seed).weights() for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    with pytest.raises(ValueError, match=r"router.init must be a number or 'normal', got 'ones'"):
        Routers((1,), 4, init="ones")


def test_unvisited_rows_do_not_move():
    """AdamW moves a parameter by its momentum even where a step's gradient is zero, but not where it is None."""
    routers = Routers((1, 3, 5), 4)
    optimizer = torch.optim.AdamW(routers.parameters(), lr=0.1, weight_decay=0.0)
    for visited in (1, 1, 3, 3, 3):
        before = {e: routers.row(e).detach().clone() for e in routers.evaluations}
        optimizer.zero_grad()
        routers.row(visited).sum().backward()
        optimizer.step()
        for e in routers.evaluations:
            assert torch.equal(routers.row(e), before[e]) == (e != visited)


def test_rows_are_differentiable():
    routers = Routers((1,), 3, init=0.0)
    routers.row(1).sum().backward()
    torch.testing.assert_close(routers.logits["1"].grad, torch.full((3,), 0.25))


def test_clamp():
    routers = Routers((1, 3), 3)
    with torch.no_grad():
        routers.logits["1"].copy_(torch.tensor([-9.0, 0.5, 9.0]))
    routers.clamp_(5.0)
    assert routers.logits["1"].tolist() == [-5.0, 0.5, 5.0]
    assert routers.logits["3"].tolist() == [2.0, 2.0, 2.0]
    assert all(p.requires_grad for p in routers.parameters())


def test_threshold_makes_rows():
    routers = Routers((1, 3), 3, init=0.0)
    with torch.no_grad():
        routers.logits["1"].copy_(torch.logit(torch.tensor([0.2, 0.4, 0.6])))
        routers.logits["3"].copy_(torch.logit(torch.tensor([0.9, 0.05, 0.9])))
    full = (True, True, True)
    assert routers.rows(5, 0.5) == (full, (False, False, True), full, (True, False, True), full)
    assert routers.rows(5, 0.3)[1] == (False, True, True)
    assert routers.removed_fraction(0.5) == pytest.approx(3 / 6)
    assert routers.removed_fraction(0.3) == pytest.approx(2 / 6)
    assert all(bit is True or bit is False for row in routers.rows(5, 0.5) for bit in row)


def test_a_weight_on_the_threshold_reuses():
    routers = Routers((1,), 2, init=0.0)
    assert routers.rows(2, 0.5)[1] == (False, False)
    assert routers.removed_fraction(0.5) == 1.0
