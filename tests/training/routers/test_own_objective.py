"""An objective of a user's own, on a wrapped module."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.sampling.solver_settings import SolverSettings
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.run import train_routers
from l2c.training.routers.settings import BudgetSettings, NoiseSettings, RouterSettings, RouterTraining
from l2c.training.settings import TrainerSettings


class Blind(LearningToCache):
    """Sees no error, so that the penalty alone moves the routers."""

    def per_sample(self, student, teacher):
        return 0 * super().per_sample(student, teacher)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        for block in self.blocks:
            torch.nn.init.constant_(block.weight, 0.5)

    def forward(self, x, t):
        h = x.flatten(2).mT + torch.sin(t / 100)[:, None, None]
        for block in self.blocks:
            h = h + block(torch.tanh(h))
        return h.mT.view_as(x)


def settings_with(router):
    return RouterTraining(
        solver=SolverSettings(name="ddim", num_evaluations=4),
        router=router,
        data=NoiseSettings(batch_size=2),
        trainer=TrainerSettings(max_steps=4, accelerator="cpu", enable_progress_bar=False),
    )


@pytest.mark.parametrize("objective", [Blind, LearningToCache])
def test_an_own_objective_decides_what_is_reused(objective, tmp_path):
    net = l2c.wrap(Net(), ["blocks.*"], input_shape=(4, 2, 2))
    settings = settings_with(RouterSettings(penalty=1e-6, learning_rate=0.5, init=0.0))
    trained = train_routers(net, settings, tmp_path, objective=objective)
    assert (trained.graph.removed_fraction == 1.0) == (objective is Blind)
    assert trained.graph.model == "Net"
    assert "Blind" not in (tmp_path / "run.json").read_text() or objective is Blind


def test_a_router_with_an_objective_keeps_it(tmp_path):
    net = l2c.wrap(Net(), ["blocks.*"], input_shape=(4, 2, 2))
    with pytest.raises(ValueError, match="Blind takes the place of the objective of router=l2c, but router=budget"):
        train_routers(net, settings_with(BudgetSettings(budget=0.75)), tmp_path, objective=Blind)
