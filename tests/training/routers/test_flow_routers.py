"""Routers of a flow: trained from noise and from pictures by the presets of the picture testbed, at tiny size."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from l2c.commands.train_router import train_by as train_router
from l2c.graph.cache_graph import CacheGraph
from l2c.io.bundled import project_folder

TINY = ["model=dit_emoji", "model.checkpoint=random", "model.args.hidden_size=24", "model.args.depth=2"]
QUICK = ["solver.num_evaluations=6", "data.batch_size=4", "trainer.accelerator=cpu", "trainer.max_steps=4"]


def config(*overrides: str):
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose("train_router", [*TINY, *QUICK, "+trainer.enable_progress_bar=false", *overrides])


@pytest.mark.parametrize("router", ["l2c", "l2c_summed", "budget", "harmonica"])
def test_routers_are_trained_from_noise(tmp_path, router):
    trained = train_router(config(f"router={router}"), tmp_path)
    graph = CacheGraph.load(tmp_path / "cache_graph.json")
    assert graph == trained.graph
    assert (graph.solver, graph.solver_options, graph.cfg_scale) == ("flow_euler", {"shift": 1.0}, 2.0)
    assert graph.timesteps == pytest.approx([1000 * (1 - e / 6) for e in range(6)])


def test_routers_are_trained_from_pictures(tmp_path, monkeypatch, tiny_emoji):
    tiny_emoji(tmp_path)
    monkeypatch.setenv("L2C_CACHE", str(tmp_path))
    trained = train_router(config("data=emoji", "solver=flow_dpm_2m", "solver.options.shift=2"), tmp_path / "run")
    assert (trained.graph.solver, trained.graph.solver_options) == ("flow_dpm_2m", {"shift": 2})
    logits = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in logits.values())
