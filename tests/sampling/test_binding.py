"""What a graph is valid for, whoever makes it."""

from __future__ import annotations

import json

import torch

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph
from l2c.integrations.smoothcache import import_smoothcache
from l2c.policies.context import PolicyContext
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler


def test_policies_and_imports_make_the_same_binding(make_dit, tmp_path):
    net = make_dit()
    sampler = Sampler(net, solver="ddim", num_evaluations=4)
    expected = binding_of(net, sampler.solver, weights_bound=True)
    torch.save({"routers": {f"{i}.prob": torch.zeros(4) for i in range(4)}}, tmp_path / "r.pt")
    (tmp_path / "s.json").write_text(json.dumps({"attn": [1, 0, 1, 1], "mlp": [1, 1, 1, 0]}))
    routers = l2c.import_l2c_router(tmp_path / "r.pt", net, solver="ddim", num_evaluations=4, threshold=0.5)
    schedule = import_smoothcache(tmp_path / "s.json", net)
    assert routers.binding == schedule.binding == PolicyContext.of(sampler).blank.binding == expected
    assert expected.fingerprint == fingerprint(net)
    assert expected.solver_options == {"eta": 0.0}


def test_a_binding_makes_a_graph_and_the_head_of_a_file(make_dit):
    net = make_dit()
    solver = Sampler(net, solver="ddim", num_evaluations=4).solver
    binding = binding_of(net, solver, weights_bound=False, guidance=Guidance("dit", 2.0))
    graph = CacheGraph.blank(binding, provenance={"method": "none"})
    assert graph.binding == binding
    assert graph.num_reused == 0
    assert CacheGraph.from_json(graph.to_json()).binding == binding
    assert graph.binding.head == {
        "model": "DiT",
        "weights": None,
        "solver": "ddim",
        "solver_options": {"eta": 0.0},
        "timesteps": list(solver.timesteps),
        "guidance_scale": 2.0,
    }
