"""Step-wise denoising training and the error weights."""

import pytest
import torch

from l2c.diffusion import Guidance, make_solver, schedule_of
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.training.routers.error_weights import ErrorWeights
from l2c.training.routers.harmonica import StepwiseDenoising
from l2c.training.routers.routers import Routers


def parts_of(net, num_evaluations=4, init=2.0, **changes):
    schedule = schedule_of(net.conventions)
    solver = make_solver("ddim", schedule, num_evaluations)
    routers = Routers(range(1, num_evaluations), net.num_layers, init=init)
    arguments = {"penalty": 0.0, "layer_weights": torch.ones(net.num_layers), "error_weights": "none", **changes}
    guidance = Guidance("dit", 1.5)
    return solver, routers, StepwiseDenoising(net, solver, routers, guidance=guidance, **arguments)


def batch_for(net, count=2):
    return seeded_noise(net.input_shape, 3, count), torch.arange(count)


def test_the_trajectory_is_the_sampler_s_own(make_dit, make_graph):
    """With thresholded rows the states visited are those of cached sampling, spans of reuse included."""
    net = make_dit()
    _, routers, walk = parts_of(net, straight_through=True)
    with torch.no_grad():
        for e, logits in zip((1, 2, 3), ([3, -3, 3, -3], [-3, -3, 3, -3], [3, 3, 3, 3]), strict=True):
            routers.logits[str(e)].copy_(torch.tensor(logits))
    graph = make_graph(net, "ddim", 4, rows=routers.rows(4, 0.5))
    noise, labels = batch_for(net)
    sampler = Sampler(net, graph=graph, cfg_scale=1.5)
    visited = []
    denoiser = Denoiser(net, labels, sampler.guidance, graph)
    sampler.solver.sample(lambda x, t: visited.append(x) or denoiser(x, t), noise)
    for step in range(3):
        pair = walk.draw((noise, labels), step)
        largest = float(visited[step + 1].abs().max())  # states grow to hundreds under random weights
        torch.testing.assert_close(pair.x[:2], visited[step + 1], rtol=0, atol=2e-6 * largest)
        walk(pair, routers.row(step + 1))


def test_a_full_row_has_no_error_and_a_resumed_walk_stands_where_the_unbroken_one_does(make_dit):
    net = make_dit()
    _, routers, walk = parts_of(net)
    batch = batch_for(net)
    full = torch.ones(net.num_layers)
    assert float(walk(walk.draw(batch, 0), full).error) == pytest.approx(0, abs=1e-10)
    _, routers, unbroken = parts_of(net)
    for step in range(2):
        unbroken(unbroken.draw(batch, step), routers.row(step + 1))
    _, _, resumed = parts_of(net)
    torch.testing.assert_close(resumed.draw(batch, 2).x, unbroken.draw(batch, 2).x)


def test_gradients_reach_the_visited_router_alone(make_dit):
    net = make_dit()
    _, routers, walk = parts_of(net, penalty=1e-3)
    walk(walk.draw(batch_for(net), 0), routers.row(1)).loss.backward()
    assert routers.logits["1"].grad.abs().min() > 0
    assert routers.logits["2"].grad is None


@pytest.mark.parametrize("variant", ["disabled_once", "cumulative"])
def test_weights_are_those_of_whole_trajectories(make_dit, variant):
    net = make_dit()
    solver, _, _ = parts_of(net)
    full, some, none = (True,) * 4, (False, True) * 2, (False,) * 4
    measure = ErrorWeights(net, solver, Guidance("dit", 1.5), variant=variant, num_images=2)
    weights = measure((full, some, full, none))
    assert weights[0] == weights[2] == 1.0  # they reuse nothing
    assert weights[1] + weights[3] == pytest.approx(2)
    assert measure((full,) * 4) == [1.0] * 4
    images = {rows: measure._images(rows) for rows in ((full, some, full, none), (full, some, full, full))}
    first, second = images.values()
    last = float((first - second).square().mean())  # caching at 3 added, or disabled: the same pair of plans
    base = measure._images((full,) * 4 if variant == "cumulative" else (full, full, full, none))
    other = float(((second if variant == "cumulative" else first) - base).square().mean())
    assert weights[3] == pytest.approx(2 * last / (last + other), rel=1e-4)


def test_sensitivities_are_changes_of_the_image_per_change_of_an_output(make_dit):
    net = make_dit()
    solver, _, _ = parts_of(net)
    full, none = (True,) * 4, (False,) * 4
    measure = ErrorWeights(net, solver, Guidance("dit", 1.5), variant="sensitivity", num_images=2)
    rows = (full, none, full, full)
    weights = measure(rows)
    assert weights[0] == 1.0
    assert sum(weights[1:]) == pytest.approx(3)
    found = []
    for e in (1, 2, 3):  # where nothing is reused, everything is
        other = tuple(full if e == i == 1 else none if e == i else row for i, row in enumerate(rows))
        seen = ([], [])
        images = [measure._images(*pair) for pair in zip((rows, other), seen, strict=True)]
        found.append(float((images[0] - images[1]).square().mean() / (seen[0][e] - seen[1][e]).square().mean()))
    assert [w / weights[3] for w in weights[1:]] == pytest.approx([f / found[2] for f in found], rel=1e-3)


def test_bad_settings_are_refused(make_dit):
    with pytest.raises(ValueError, match="must be sensitivity, disabled_once, cumulative or none, got 'all'"):
        parts_of(make_dit(), error_weights="all")
    with pytest.raises(ValueError, match="weights_every must be at least 1"):
        parts_of(make_dit(), weights_every=0)
