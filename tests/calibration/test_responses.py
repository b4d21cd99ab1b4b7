"""Responses, evaluation by evaluation, against one backward pass through the whole trajectory."""

import pytest
import torch
from torch import nn

import l2c
from l2c.calibration.responses import measure_both_ways, measure_responses
from l2c.io.seeds import ImageNoise
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import Sampler, seeded_noise

E, K, N = 5, 3, 2


def in_one_pass(sampler, labels, noise, seed):
    """Return q . J_e (f_i - f_e), (E, L, E, N * K), the graph of the whole trajectory being kept."""
    backbone, outputs = sampler.backbone, []
    network = GuidedBackbone(backbone, labels, sampler.guidance)

    def evaluate(x, t):
        everything = (True,) * backbone.num_layers
        output, layers = backbone.forward_cached(*network.inputs(x, t), network.y, everything)
        outputs.append(layers)
        return network.merge(output, t)

    image = sampler.solver.sample(evaluate, noise.requires_grad_(True))
    size = noise[0].numel()
    probes = torch.linalg.qr(ImageNoise("directions of responses", seed, range(N))((N, size, K))).Q
    found = torch.zeros(E, backbone.num_layers, E, N, K)
    for k in range(K):
        entries = [layer for layers in outputs for layer in layers]
        gradients = torch.autograd.grad((image.flatten(1) * probes[..., k]).sum(), entries, retain_graph=True)
        for e in range(E):
            for layer in range(backbone.num_layers):
                for other in range(E):
                    change = outputs[other][layer] - outputs[e][layer]
                    inner = (gradients[e * backbone.num_layers + layer] * change).flatten(1).sum(1)
                    found[e, layer, other, :, k] = inner.view(-1, N).sum(0).detach()
    return found.flatten(3) / (N * K) ** 0.5


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2s", "dpm_solver_2m"])
def test_responses_equal_those_of_one_pass_through_the_trajectory(make_dit, solver):
    sampler = Sampler(make_dit(), solver=solver, num_evaluations=E, cfg_scale=1.5)
    labels, noise = torch.tensor([1, 2]), seeded_noise(sampler.backbone.input_shape, 3, N)
    options = {"num_probes": K, "batch_size": N, "seed": 4}
    found = measure_both_ways(sampler, labels, noise.clone(), max_age=3, max_ahead=2, **options)
    back, ahead = found["responses"], found["responses_ahead"]
    wanted = in_one_pass(sampler, labels, noise.clone(), 4)
    scale = float(wanted.abs().max())
    for e in range(E):
        for a in range(1, min(e, 3) + 1):
            assert torch.allclose(back[e, :, a - 1], wanted[e, :, e - a], rtol=1e-4, atol=1e-5 * scale)
        for b in range(1, min(E - 1 - e, 2) + 1):
            assert torch.allclose(ahead[e, :, b - 1], wanted[e, :, e + b], rtol=1e-4, atol=1e-5 * scale)
    assert not ahead[E - 1].any()
    assert torch.equal(back, measure_responses(sampler, labels, noise.clone(), max_age=3, **options))


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2s"])
def test_responses_to_outputs_between_evaluations(make_dit, solver):
    """By the gradients of one pass through the trajectory, outputs taken at states mixed by the schedule."""
    sampler = Sampler(make_dit(), solver=solver, num_evaluations=E, cfg_scale=1.5)
    labels, noise = torch.tensor([1, 2]), seeded_noise(sampler.backbone.input_shape, 3, N)
    options = {"num_probes": K, "batch_size": N, "seed": 4, "max_age": 3, "max_ahead": 2}
    found = measure_both_ways(sampler, labels, noise.clone(), between=2, **options)
    without = measure_both_ways(sampler, labels, noise.clone(), **options)
    assert set(found) - set(without) == {f"output_responses{way}_between" for way in ("", "_ahead")}
    assert all(torch.equal(found[name], tensor) for name, tensor in without.items())

    network, outputs, states = GuidedBackbone(sampler.backbone, labels, sampler.guidance), [], []

    def evaluate(x, t):
        states.append(x.detach())
        outputs.append(network.full(x, t)[0].detach())
        return outputs[-1].detach()

    schedule, indices = sampler.solver.schedule, sampler.solver.indices
    sampler.solver.sample(evaluate, noise.clone())
    taken = []  # the output at a third and at two thirds of the way from each evaluation to the next
    for e in range(E - 1):
        for share in (1 / 3, 2 / 3):
            index = indices[e] + share * (indices[e + 1] - indices[e])
            levels = torch.tensor([schedule.marginal(i) for i in (indices[e], indices[e + 1])]).T.double()
            c, d = torch.linalg.solve(levels, torch.tensor(schedule.marginal(index)).double()).tolist()
            taken.append(network.full(c * states[e] + d * states[e + 1], schedule.timestep(index))[0].detach())
    whole = found["output_responses"].view(E, 3, N, K)
    for e in range(1, E):
        gradient = _gradient(sampler, labels, noise, e)
        for age in range(min(e, 3)):
            change = outputs[e - age - 1] - outputs[e]
            assert torch.allclose(_along(gradient, change), whole[e, age], rtol=1e-3, atol=1e-5)
        between = found["output_responses_between"].view(E, 6, N, K)[e]
        for place in range(min(2 * e, 6)):
            change = taken[2 * e - 1 - place] - outputs[e]
            assert torch.allclose(_along(gradient, change), between[place], rtol=1e-3, atol=1e-5)
        ahead = found["output_responses_ahead_between"].view(E, 4, N, K)[e]
        for place in range(min(2 * (E - 1 - e), 4)):
            change = taken[2 * e + place] - outputs[e]
            assert torch.allclose(_along(gradient, change), ahead[place], rtol=1e-3, atol=1e-5)


def _gradient(sampler, labels, noise, e):
    """Return the gradients (K, N, P) of the probes' products with the image by the output of evaluation e."""
    network, own = GuidedBackbone(sampler.backbone, labels, sampler.guidance), []

    def evaluate(x, t):
        output = network.full(x, t)[0]
        own.append(output.detach().requires_grad_(True) if len(own) == e else output)
        return own[-1]

    with torch.enable_grad():
        image = sampler.solver.sample(evaluate, noise.clone()).flatten(1)
    probes = torch.linalg.qr(ImageNoise("directions of responses", 4, range(N))((N, image.shape[1], K))).Q
    found = [torch.autograd.grad((image * probes[..., k]).sum(), own[e], retain_graph=True)[0] for k in range(K)]
    return torch.stack(found).flatten(2) / (N * K) ** 0.5


def _along(gradient, change):
    return torch.einsum("knp,np->nk", gradient, change.flatten(1))


def test_activations_of_one_evaluation_at_a_time_are_kept(make_dit):
    """The number of tensors saved for backward passes does not grow with the number of evaluations."""
    net = make_dit()

    def most_saved(num_evaluations):
        sampler = Sampler(net, solver="ddim", num_evaluations=num_evaluations, cfg_scale=1.5)
        alive, most = set(), [0]

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor
                alive.add(id(self))
                most[0] = max(most[0], len(alive))

            def __del__(self):
                alive.discard(id(self))

        noise = seeded_noise(net.input_shape, 3, 1)
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            measure_responses(sampler, torch.tensor([1]), noise, num_probes=1, max_age=2, batch_size=1)
        return most[0]

    few, many = most_saved(3), most_saved(9)
    assert many < 1.5 * few  # what the solver's own products of states keep


class Prompted(nn.Module):
    """Its first layer is given the time alone, as refiners of texts are."""

    def __init__(self, reads=True):
        super().__init__()
        self.text, self.picture, self.reads = nn.Linear(1, 4), nn.Linear(4, 4), reads

    def forward(self, x, t):
        text = self.text(t[:, None] / 1000)
        flat = x.flatten(1) if self.reads else x.detach().flatten(1)
        return (flat + self.picture(flat).tanh() * 0.1 + text).view_as(x)


def sampler_of(module):
    torch.manual_seed(0)
    return Sampler(l2c.wrap(module, ["text", "picture"], input_shape=(1, 2, 2)), solver="ddim", num_evaluations=E)


def test_layers_of_prompt_and_time_alone_have_responses():
    """Of all four directions the squares are those of the image, in which the last output was an older one."""
    torch.manual_seed(0)
    sampler = sampler_of(Prompted())
    noise = seeded_noise((1, 2, 2), 3, 1)
    found = measure_responses(sampler, None, noise, num_probes=4, max_age=2)
    rows = [[True, True]] * (E - 1) + [[False, True]]
    graph = l2c.CacheGraph(
        rows=rows,
        layers=sampler.backbone.layer_names,
        timesteps=sampler.solver.timesteps,
        model=sampler.backbone.conventions.name,
        solver="ddim",
    )
    cached = Sampler(sampler.backbone, graph=graph).sample(None, noise=noise)
    true = (cached - sampler.sample(None, noise=noise)).square().mean()
    assert float(found[E - 1, 0, 0].square().sum()) == pytest.approx(float(true), rel=1e-3)
    assert true > 0


def test_a_model_whose_output_does_not_follow_its_input_is_refused():
    with pytest.raises(ValueError, match="passes no gradient from its output to its layers"):
        measure_responses(sampler_of(Prompted(reads=False)), None, seeded_noise((1, 2, 2), 3, 1))
