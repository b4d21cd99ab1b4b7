"""A backbone that predicts the velocity of a flow goes through everything that others go through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from l2c.backbones.wrap import wrap
from l2c.calibration.changes import measure_changes
from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.diffusion import FLOW_SOLVERS
from l2c.graph.cache_graph import CacheGraph
from l2c.policies.context import PolicyContext
from l2c.policies.registry import POLICIES, make_graph
from l2c.sampling.sampler import Sampler

E = 6
LABELS = torch.tensor([0, 3, 4])


@pytest.fixture(scope="module")
def flow(make_dit):
    backbone = make_dit(depth=3)
    backbone.conventions = replace(backbone.conventions, name="flow_dit", schedule="flow", prediction="flow")
    return backbone


@pytest.fixture(scope="module")
def noise(flow):
    return torch.randn(3, *flow.input_shape, generator=torch.Generator().manual_seed(0))


def plain(backbone, solver="flow_euler", **options):
    return Sampler(backbone, solver=solver, num_evaluations=E, cfg_scale=2.0, **options)


@pytest.fixture(scope="module")
def context(flow, noise):
    sampler = plain(flow)
    tensors = measure_changes(sampler, LABELS, noise, max_age=3)
    tensors["responses"] = measure_responses(sampler, LABELS, noise, num_probes=1, max_age=4)
    settings = {"seed": 7, "num_trajectories": 3, "batch_size": 3, "responses": {"num_probes": 1, "max_age": 4}}
    return PolicyContext.of(sampler, Measurements(tensors, PolicyContext.of(sampler).blank.binding, settings))


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_euler_takes_guided_velocities_as_steps(flow, make_uvit, noise, kind):
    backbone = flow
    if kind == "uvit":
        backbone = make_uvit()
        backbone.conventions = replace(backbone.conventions, schedule="flow", first_timestep=0, prediction="flow")
    x = noise
    for e in range(E):
        t, null = torch.full((3,), 1000 * (1 - e / E)), torch.full_like(LABELS, 5)
        with torch.no_grad():
            cond, uncond = backbone(x, t, LABELS)[:, :4], backbone(x, t, null)[:, :4]
        velocity = cond + 2.0 * (cond - uncond)
        if kind == "dit":  # which guides three channels of four
            velocity = torch.cat([uncond[:, :3] + 2.0 * (cond - uncond)[:, :3], cond[:, 3:]], dim=1)
        x = x - velocity / E
    torch.testing.assert_close(plain(backbone).sample(LABELS, noise=noise), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", FLOW_SOLVERS)
def test_a_graph_brings_solver_shift_and_times(flow, noise, solver, random_rows, tmp_path):
    sampler = plain(flow, solver, solver_options={"shift": 3.0})
    full = PolicyContext.of(sampler).blank
    assert full.solver_options == {"shift": 3.0}
    full.save(tmp_path / "graph.json")
    loaded = CacheGraph.load(tmp_path / "graph.json")
    assert loaded == full
    uncached = sampler.sample(LABELS, noise=noise)
    torch.testing.assert_close(Sampler(flow, graph=loaded).sample(LABELS, noise=noise), uncached, rtol=0, atol=0)
    thin = full.replace(rows=random_rows(E, flow.num_layers), routed=None)
    assert not torch.equal(Sampler(flow, graph=thin).sample(LABELS, noise=noise), uncached)
    with pytest.raises(ValueError, match=r"made for shift 3.0, got 1.0; leave shift out"):
        Sampler(flow, graph=loaded, solver_options={"shift": 1.0})


def test_solvers_of_the_other_kind_are_refused(flow, make_dit):
    with pytest.raises(ValueError, match=r"ddim cannot follow the noise schedule flow .* flow_euler, flow_dpm_2m"):
        plain(flow, "ddim")
    with pytest.raises(ValueError, match=r"flow_euler cannot follow the noise schedule linear"):
        plain(make_dit(), "flow_euler")


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_makes_a_graph(context, noise, flow, name):
    options = {} if name == "interval" else {"budget": 0.8}
    if name == "best":
        options |= {"num_trajectories": 3, "pool": 4, "steps": 2, "batch_size": 3}
    graph = make_graph(name, context, **options)
    assert graph.num_reused > 0
    assert graph.solver == "flow_euler"
    images = Sampler(flow, graph=graph).sample(LABELS, noise=noise)
    assert torch.isfinite(images).all()


def test_a_wrapped_flow_is_the_same_flow(flow, noise):
    wrapped = wrap(
        flow,
        ["blocks.*.attn", "blocks.*.mlp"],
        timestep="t",
        labels="y",
        num_labels=5,
        null_label=5,
        input_shape=flow.input_shape,
        schedule="flow",
        prediction="flow",
        guidance="dit",
    )
    assert wrapped.conventions.prediction == "flow"
    got, wanted = (plain(each).sample(LABELS, noise=noise) for each in (wrapped, flow))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_network_of_v_samples_what_its_noise_says(make_dit, noise):
    """A DiT that predicts noise, and the same one whose output is told as v."""
    backbone = make_dit(depth=2, learn_sigma=False)
    sampler = Sampler(backbone, solver="ddim", num_evaluations=E)

    class AsV(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = backbone

        def forward(self, x, t, y):
            alpha, sigma = sampler.solver.schedule.marginal(float(t[0]))
            eps = self.net(x, t, y)
            return alpha * eps - sigma * (x - sigma * eps) / alpha

    told = wrap(
        AsV(),
        ["net.blocks.*.attn"],
        labels="y",
        num_labels=5,
        null_label=5,
        input_shape=backbone.input_shape,
        prediction="v",
    )
    got = Sampler(told, solver="ddim", num_evaluations=E).sample(LABELS, noise=noise)
    wanted = sampler.sample(LABELS, noise=noise)
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()
