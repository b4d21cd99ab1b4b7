"""Responses by forward passes alone, against images in which one layer's output really was the older one."""

import pytest
import torch
from without_backward import WithoutBackward

from l2c.backbones.whole_output import WholeOutput
from l2c.calibration.forward_responses import measure_forward
from l2c.calibration.grid import output_map
from l2c.calibration.measurements import Measurements
from l2c.calibration.measuring import measure
from l2c.calibration.responses import measure_both_ways
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler, seeded_noise

E, N = 5, 2


def changed_images(sampler, labels, noise, entries):
    """Return the mean squared change of images in which entries (e, layer) hold the last evaluation's output."""
    blank = PolicyContext.of(sampler).blank
    rows = [list(row) for row in blank.rows]
    for e, layer in entries:
        rows[e][layer] = False
    graph = blank.replace(rows=tuple(map(tuple, rows)), routed=None)
    cached = Sampler(sampler.backbone, graph=graph, cfg_scale=1.5).sample(labels, noise=noise)
    return float((cached - sampler.sample(labels, noise=noise)).square().mean())


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2s", "dpm_solver_2m"])
def test_a_response_is_what_the_older_output_changes_in_the_image(make_dit, solver):
    sampler = Sampler(make_dit(), solver=solver, num_evaluations=E, cfg_scale=1.5)
    labels, noise = torch.tensor([1, 2]), seeded_noise(sampler.backbone.input_shape, 3, N)
    everything = sampler.backbone.num_layers * (E - 1)  # as many directions as entries: nothing is left out
    back, ahead = measure_forward(sampler, labels, noise, num_probes=everything, max_age=2, batch_size=1)
    for entries in [[(1, 0)], [(2, 3)], [(3, 1)], [(2, 0), (3, 3)]]:
        total = sum(back[e, layer, 0] for e, layer in entries)
        true = changed_images(sampler, labels, noise, entries)
        assert float(total @ total) == pytest.approx(true, rel=0.25)
    few, _ = measure_forward(sampler, labels, noise, num_probes=6, max_age=2, batch_size=N)
    sizes = [float(found[:, :, 0].square().sum()) for found in (few, back)]
    assert 0.8 * sizes[1] < sizes[0] < 1.01 * sizes[1]  # the largest changes are kept
    assert ahead.shape == (E, sampler.backbone.num_layers, 3, N * everything)


def test_sums_over_ages_follow_the_solvers_steps(make_dit):
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=E, cfg_scale=1.5)
    labels, noise = torch.tensor([1, 2]), seeded_noise(sampler.backbone.input_shape, 3, N)
    back, ahead = measure_forward(sampler, labels, noise, num_probes=6, max_age=3)
    from l2c.calibration.grid import step_coefficients

    c = step_coefficients(sampler.solver)
    assert torch.allclose(back[3, :, 1], back[3, :, 0] + c[3] / c[2] * back[2, :, 0], rtol=1e-4, atol=1e-7)
    assert torch.allclose(ahead[2, :, 0], -c[2] / c[3] * back[3, :, 0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2s", "dpm_solver_2m"])
def test_responses_to_the_whole_output_are_those_of_gradients(make_dit, solver):
    """With all directions both ways know the inner products of all changes of the image, whatever their ages."""
    sampler = Sampler(WholeOutput(make_dit()), solver=solver, num_evaluations=E, cfg_scale=1.5)
    noise = seeded_noise(sampler.backbone.input_shape, 3, 1)
    given = {"num_probes": noise.numel(), "max_age": 3, "max_ahead": 2, "batch_size": 1}
    exact = measure_both_ways(sampler, torch.tensor([1]), noise, **given)
    products = []
    for found in (exact.values(), measure_forward(sampler, torch.tensor([1]), noise, **given)):
        changes = torch.cat(list(found), dim=2).flatten(0, 2)  # (entries, M)
        products.append(changes @ changes.T)
    sizes = products[0].diagonal().sqrt()
    assert int((sizes > 0).sum()) == (4 + 3 + 2) + (4 + 3)
    assert float(((products[1] - products[0]) / (sizes[:, None] * sizes)).nan_to_num().abs().max()) < 0.02


def test_layers_of_a_group_have_equal_parts(make_dit):
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=E, cfg_scale=1.5)
    labels, noise = torch.tensor([1]), seeded_noise(sampler.backbone.input_shape, 3, 1)
    back, _ = measure_forward(sampler, labels, noise, num_probes=4, max_age=1, group=2)
    assert torch.equal(back[:, 0], back[:, 1])
    assert not torch.equal(back[:, 1], back[:, 2])
    both = back[2, 0, 0] + back[2, 1, 0]
    assert float(both @ both) == pytest.approx(changed_images(sampler, labels, noise, [(2, 0), (2, 1)]), rel=0.5)


def test_the_map_of_a_solver_gives_its_states(make_dit):
    solver = Sampler(make_dit(), solver="dpm_solver_2m", num_evaluations=E, cfg_scale=1.5).solver
    outputs = torch.randn(E, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states, calls = [], iter(range(E))

    def output(x, t):
        states.append(float(x))
        return outputs[next(calls)]

    states.append(float(solver.sample(output, torch.zeros(1, 1, 1, 1, dtype=torch.float64))))
    assert torch.allclose(output_map(solver) @ outputs.flatten(), torch.tensor(states, dtype=torch.float64))


def test_a_model_without_a_backward_pass_is_measured_forward_only(make_dit):
    net = make_dit()
    handle = net.blocks[1].mlp.register_forward_hook(lambda module, args, output: WithoutBackward.apply(output))
    sampler = Sampler(net, solver="ddim", num_evaluations=E, cfg_scale=1.5)
    labels, noise = torch.tensor([1]), seeded_noise(net.input_shape, 3, 1)
    with pytest.raises(
        ValueError, match=r"passes no gradient .*\(derivative for int8_linear is not implemented\);"
    ) as no:
        measure_both_ways(sampler, labels, noise, num_probes=1)
    assert "responses.method=forward" in str(no.value)
    found = measure(Measurements, sampler, num_trajectories=2, responses={"method": "forward", "num_probes": 3})
    handle.remove()
    assert found.settings["responses"] == {"method": "forward", "num_probes": 3, "max_age": 4, "group": 1}
    assert found.tensor("responses").shape == (E, 4, 4, 6)
    graph = make_graph("gram", PolicyContext.of(sampler, found), budget=0.7)
    assert graph.num_reused > 0
    assert "responses of 2 trajectories say little of others" in graph.measured["expected_mse_unknown"]


@pytest.mark.parametrize(
    ("responses", "sentence"),
    [
        ({"method": "guess"}, "responses.method must be gradient or forward, got 'guess'"),
        ({"group": 2}, "responses.group is for responses.method=forward"),
    ],
)
def test_bad_settings_are_refused(make_dit, responses, sentence):
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=E, cfg_scale=1.5)
    with pytest.raises(ValueError, match=sentence):
        measure(Measurements, sampler, num_trajectories=1, responses=responses)


def test_solvers_that_add_noise_are_refused(make_dit):
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=E, eta=0.5)
    with pytest.raises(ValueError, match="adds noise at its steps"):
        measure_forward(sampler, torch.tensor([1]), seeded_noise(sampler.backbone.input_shape, 3, 1))
