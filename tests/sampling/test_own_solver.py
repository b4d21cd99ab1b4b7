"""A solver, a graph and a predictor of a user's own, against loops by hand."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.diffusion import DDIM, Evaluation, NoiseSchedule, Solver
from l2c.diffusion.schedule import FLOW, FlowSchedule


class Midpoint(Solver):
    """The midpoint rule on a flow: two evaluations a step."""

    name = "own_midpoint"
    schedules = (FLOW,)

    def __init__(self, num_steps):
        self.edges = [1 - k / num_steps for k in range(num_steps + 1)]
        middles = [(a + b) / 2 for a, b in zip(self.edges, self.edges[1:], strict=False)]
        times = [t for pair in zip(self.edges, middles, strict=False) for t in pair]
        steps = tuple((2 * k, 2 * k + 1) for k in range(num_steps))
        super().__init__(FlowSchedule(), tuple(1000 * t for t in times), steps)

    def trajectory(self, x, *, first_step=0, generator=None):
        for k in range(first_step, len(self.steps)):
            h = self.edges[k + 1] - self.edges[k]
            output = yield Evaluation(2 * k, x, self.timesteps[2 * k])
            middle = x + h / 2 * self.predicted_velocity(output, x, 2 * k)
            output = yield Evaluation(2 * k + 1, middle, self.timesteps[2 * k + 1])
            x = x + h * self.predicted_velocity(output, middle, 2 * k + 1)
        return x


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, t):
        h = x.flatten(2).mT + torch.sin(t / 100)[:, None, None]
        for block in self.blocks:
            h = h + block(torch.tanh(h))
        return h.mT.view_as(x)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return l2c.wrap(Net(), ["blocks.*"], input_shape=(4, 2, 2), schedule="flow")


@pytest.fixture
def noise():
    return torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def test_an_error_of_an_own_solver_is_not_blamed_on_the_network(net, noise):
    class Wrong(Midpoint):
        def trajectory(self, x, *, first_step=0, generator=None):
            output = yield Evaluation(0, x, self.timesteps[0])
            return output + "1"

    with pytest.raises(TypeError) as failed:
        l2c.Sampler(net, solver=Wrong(2)).sample(noise=noise)
    assert "failed while images" not in str(failed.value)
    layer = next(module for module in net.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_pre_hook(lambda *given: given[1][0] + "1")
    with pytest.raises(TypeError, match="failed while images were drawn"):
        l2c.Sampler(net, solver=Midpoint(2)).sample(noise=noise)


class ByHand:
    """A network whose layers are replaced by weighted sums of what they computed before."""

    def __init__(self, net, rows, weights):
        self.module, self.rows, self.weights, self.e = net.module, rows, weights, 0
        self.kept = [[] for _ in net.layer_names]

    def __call__(self, x, t):
        hooks = [
            block.register_forward_hook(lambda module, args, output, i=i: self.output(i, output))
            for i, block in enumerate(self.module.blocks)
        ]
        result = self.module(x, torch.full((len(x),), t))
        for hook in hooks:
            hook.remove()
        self.e += 1
        return result

    def output(self, i, output):
        if self.rows[self.e][i]:
            self.kept[i].insert(0, output)
            return None
        return sum(w * past for w, past in zip(self.weights, self.kept[i], strict=False))


@pytest.mark.parametrize("weights", [(1.0,), (1.75, -0.75), (2.5, -2.0, 0.5)])
def test_an_own_solver_runs_an_own_predictor(net, noise, weights):
    solver = Midpoint(4)
    uncached = l2c.Sampler(net, solver=solver)
    rows = [[e < 3 or (e + i) % 2 == 0 for i in range(3)] for e in range(8)]
    sets = [[weights] * row.count(False) for row in rows]
    graph = l2c.CacheGraph(
        rows=rows,
        layers=net.layer_names,
        timesteps=solver.timesteps,
        model="Net",
        solver=solver.name,
        reuse=["weighted" if given else "hold" for given in sets],
        weights=sets,
    )
    with torch.no_grad():
        for made, wanted in ((None, ByHand(net, [[True] * 3] * 8, ())), (graph, ByHand(net, rows, weights))):
            x = noise
            for k in range(4):
                middle = x - 0.125 * wanted(x, 1000 * (1 - k / 4))
                x = x - 0.25 * wanted(middle, 1000 * (1 - k / 4 - 0.125))
            images = l2c.Sampler(net, solver=solver, graph=made).sample(noise=noise)
            torch.testing.assert_close(images, x, rtol=1e-5, atol=1e-5)
    assert not torch.equal(images, uncached.sample(noise=noise))


def test_an_own_solver_is_calibrated(net, noise):
    sampler = l2c.Sampler(net, solver=Midpoint(5))
    few = {"num_trajectories": 4, "true_errors": 4, "responses": {"num_probes": 2}}
    calibration = l2c.Calibration.measure(sampler, **few)
    graph = calibration.graph(0.6)
    assert (graph.solver, graph.num_evaluations) == ("own_midpoint", 10)
    cached = l2c.Sampler(net, graph=graph, solver=Midpoint(5)).sample(noise=noise)
    assert 0 < float((cached - sampler.sample(noise=noise)).norm() / cached.norm()) < 0.5
    with pytest.raises(ValueError, match=r"does not hold the noise schedule of own_midpoint; pass .* solver="):
        calibration.graph(0.6, num_steps=20)


def test_mistakes_with_own_solvers_are_one_sentence(net):
    graph = l2c.Calibration.measure(
        l2c.Sampler(net, solver=Midpoint(3)), num_trajectories=2, true_errors=0, responses={"num_probes": 1}
    ).graph(0.7)
    with pytest.raises(ValueError, match=r"unknown solver own_midpoint; known are ddim, .*: pass the solver itself"):
        l2c.Sampler(net, graph=graph)
    with pytest.raises(ValueError, match="6"):
        l2c.Sampler(net, graph=graph, solver=Midpoint(4))
    with pytest.raises(ValueError, match="has 6 evaluations and options of its own, got num_evaluations=5 beside it"):
        l2c.Sampler(net, solver=Midpoint(3), num_evaluations=5)
    with pytest.raises(ValueError, match="got the option eta beside it"):
        l2c.Sampler(net, solver=Midpoint(3), eta=0.5)

    class Other(DDIM):
        pass

    with pytest.raises(ValueError, match=r"begins with own_, .* got 'ddim' of Other"):
        l2c.Sampler(net, solver=Other(NoiseSchedule(), 4))
    with pytest.raises(ValueError, match=r"ddim was made for another noise schedule .*schedule=betas"):
        l2c.Sampler(l2c.wrap(Net(), ["blocks.*"]), solver=DDIM(NoiseSchedule("cosine"), 4))
