"""Training pairs against the sampler's own states and against passes made by hand."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.data.noise import NoiseDataModule
from l2c.diffusion import Guidance, make_solver, schedule_of
from l2c.sampling.denoiser import Denoiser
from l2c.training.routers.pairs import DataPairs, TrajectoryPairs
from l2c.training.routers.routers import routed_evaluations

SCALES = {"dit": 2.0, "uvit": 0.7}


def solver_for(backbone, name=None, num_evaluations=6, **options):
    conventions = backbone.conventions
    schedule = schedule_of(conventions)
    name = name or ("ddim" if conventions.guidance == "dit" else "dpm_solver_2s")
    return make_solver(name, schedule, num_evaluations, **options)


@pytest.fixture
def images(backbone):
    generator = torch.Generator().manual_seed(4)
    return torch.randn((3, *backbone.input_shape), generator=generator), torch.tensor([0, 3, 4])


def same(a, b):
    """Whether two pairs are bitwise equal."""
    tensors = zip((a.x, a.t, a.y, a.teacher, *a.cache), (b.x, b.t, b.y, b.teacher, *b.cache), strict=True)
    return all(torch.equal(p, q) for p, q in tensors)


# --- from images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2s", "dpm_solver_2m"])
def test_data_pair_is_one_solver_step_by_full_passes(backbone, images, solver):
    x_0, y = images
    solver = solver_for(backbone, solver)
    routed = routed_evaluations(solver.steps)
    pairs = DataPairs(backbone, solver, routed)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(5))
    for evaluation in routed:
        step = solver.step_of(evaluation - 1)
        alpha, sigma = solver.marginal(solver.steps[step][0])
        x = alpha * x_0 + sigma * noise
        assert torch.equal(pairs.start(x_0, noise, evaluation), x)
        trajectory = solver.trajectory(x, first_step=step)
        request = next(trajectory)
        while request.index < evaluation:
            t = torch.full((3,), request.t)
            _, cache = backbone.forward_cached(request.x, t, y, (True,) * backbone.num_layers)
            request = trajectory.send(backbone(request.x, t, y))
        pair = pairs.pair(x_0, noise, y, evaluation)
        assert torch.equal(pair.x, request.x)
        assert pair.t.tolist() == [pytest.approx(solver.timesteps[evaluation])] * 3
        assert torch.equal(pair.teacher, backbone(request.x, pair.t, y))
        assert all(torch.equal(a, b) for a, b in zip(pair.cache, cache, strict=True))


def test_a_network_that_knows_the_noise_stays_on_the_line(make_dit):
    """Then x_m is the image noised to m, by the same noise."""
    net = make_dit()
    solver = solver_for(net)
    x_0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    zeros = tuple(torch.zeros(1) for _ in range(net.num_layers))
    net.forward_cached = lambda x, *_, **__: (torch.cat([noise, noise], dim=1), zeros)
    pair = DataPairs(net, solver, (3,)).pair(x_0, noise, torch.tensor([0, 1]), 3)
    alpha, sigma = solver.marginal(3)
    torch.testing.assert_close(pair.x, alpha * x_0 + sigma * noise, rtol=1e-4, atol=1e-4)


def test_rounded_times_are_given_to_noise_teacher_and_student(make_uvit):
    net = make_uvit()
    solver = solver_for(net, "dpm_solver_2s", 20)
    x_0, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 3, 4])
    noise = torch.randn(x_0.shape)
    pairs = DataPairs(net, solver, (10,), round_times=True)
    assert solver.indices[8] == pytest.approx(599.4)
    alpha, sigma = solver.schedule.marginal(599)
    torch.testing.assert_close(pairs.start(x_0, noise, 10), alpha * x_0 + sigma * noise, rtol=0, atol=0)
    pair = pairs.pair(x_0, noise, y, 10)
    assert solver.timesteps[10] == pytest.approx(500.5)
    assert pair.t.tolist() == [501.0] * 3  # halves up
    assert torch.equal(pair.teacher, net(pair.x, torch.full((3,), 501.0), y))


def test_data_draw_depends_on_seed_and_step_alone(backbone, images):
    solver = solver_for(backbone)
    routed = routed_evaluations(solver.steps)
    first, again, other = (DataPairs(backbone, solver, routed, seed=seed) for seed in (0, 0, 1))
    first.draw(images, 3)
    assert same(first.draw(images, 7), again.draw(images, 7))
    assert not torch.equal(first.draw(images, 7).x, first.draw(images, 7 + len(routed)).x)
    assert not torch.equal(first.draw(images, 7).x, other.draw(images, 7).x)


@pytest.mark.parametrize(("solver", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_data_draw_of_stochastic_solvers_depends_on_seed_and_step_alone(make_dit, solver, options):
    net = make_dit()
    solver = solver_for(net, solver, **options)
    pairs = DataPairs(net, solver, routed_evaluations(solver.steps))
    images = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    torch.manual_seed(0)
    first = pairs.draw(images, 0)
    torch.manual_seed(1)
    assert same(first, pairs.draw(images, 0))


@pytest.mark.parametrize("visits", ["balanced", "random"])
def test_visits(make_dit, visits):
    solver = solver_for(make_dit(), "ddim", 20)
    routed = routed_evaluations(solver.steps)
    pairs = DataPairs(make_dit(), solver, routed, visits=visits)
    visited = [pairs.evaluation(step) for step in range(200)]
    cycles = [visited[i : i + 10] for i in range(0, 200, 10)]
    assert set(visited) == set(routed)
    assert visited == [pairs.evaluation(step) for step in range(200)]
    assert len({tuple(cycle) for cycle in cycles}) > 15
    assert all(sorted(cycle) == list(routed) for cycle in cycles) == (visits == "balanced")


def test_unknown_visits_are_refused(make_dit):
    with pytest.raises(ValueError, match=r"router.visits must be balanced or random, got 'all'"):
        DataPairs(make_dit(), solver_for(make_dit()), (1,), visits="all")


def test_labels_are_dropped_at_the_given_rate(make_dit):
    net = make_dit()
    solver = solver_for(net, "ddim", 2)
    images = torch.zeros(400, 4, 8, 8), torch.arange(400) % 5
    labels = DataPairs(net, solver, (1,), label_dropout=0.25).draw(images, 0).y
    dropped = labels == 5
    assert 0.18 < dropped.float().mean() < 0.32
    assert torch.equal(labels[~dropped], images[1][~dropped])
    assert torch.equal(DataPairs(net, solver, (1,), label_dropout=0.0).draw(images, 0).y, images[1])


def test_unconditional_backbones_get_no_labels(make_uvit):
    net = make_uvit(num_classes=-1)
    pairs = DataPairs(net, solver_for(net), (2, 4))
    pair = pairs.draw((torch.randn(2, 4, 8, 8), torch.tensor([0, 1])), 0)
    assert pair.y is None
    trajectory = TrajectoryPairs(net, solver_for(net), (2, 4), guidance=Guidance("uvit"))
    assert trajectory.draw((torch.randn(2, 4, 8, 8), torch.tensor([0, 0])), 0).y is None


def test_pairs_carry_no_gradients(backbone, images):
    backbone.requires_grad_(True)
    solver = solver_for(backbone)
    routed = routed_evaluations(solver.steps)
    guidance = Guidance(backbone.conventions.guidance)
    for pairs in (DataPairs(backbone, solver, routed), TrajectoryPairs(backbone, solver, routed, guidance=guidance)):
        pair = pairs.draw(images, 0)
        assert not any(tensor.requires_grad for tensor in (pair.x, pair.teacher, *pair.cache))


# --- from trajectories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True])
def test_trajectory_pairs_visit_the_samplers_states(backbone, images, guided):
    noise, y = images
    guidance = Guidance(backbone.conventions.guidance, SCALES[backbone.conventions.guidance] if guided else None)
    solver = solver_for(backbone, num_evaluations=8)
    routed = routed_evaluations(solver.steps)
    states = []
    denoiser = Denoiser(backbone, y, guidance)
    with torch.no_grad():
        solver.sample(lambda x, t: states.append((x, t)) or denoiser(x, t), noise)
    pairs = TrajectoryPairs(backbone, solver, routed, guidance=guidance)
    batch = 6 if guided else 3
    labels = torch.cat([y, torch.full((3,), 5)])[:batch]
    for step, evaluation in enumerate(routed):
        pair = pairs.draw((noise, y), step)
        assert pairs.evaluation(step) == evaluation
        x, t = states[evaluation]
        assert torch.equal(pair.x, torch.cat([x, x])[:batch])
        assert torch.equal(pair.t, torch.full((batch,), t))
        assert torch.equal(pair.y, labels)
        assert torch.equal(pair.teacher, backbone(pair.x, pair.t, labels))
        before, t = states[evaluation - 1]
        _, cache = backbone.forward_cached(
            torch.cat([before, before])[:batch], torch.full((batch,), t), labels, (True,) * backbone.num_layers
        )
        assert all(torch.equal(a, b) for a, b in zip(pair.cache, cache, strict=True))


@pytest.mark.parametrize("store_outputs", [False, True])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm_solver_2s"])
def test_revisited_pairs_are_the_first_ones_at_less_cost(backbone, images, solver, store_outputs):
    """The teacher and the trajectory are not computed again, the filling of the cache neither where it is stored."""
    guidance = Guidance(backbone.conventions.guidance, SCALES[backbone.conventions.guidance])
    solver = solver_for(backbone, solver, num_evaluations=6)
    routed = routed_evaluations(solver.steps)
    settings = {"guidance": guidance, "num_trajectories": 2, "store_outputs": store_outputs}
    pairs = TrajectoryPairs(backbone, solver, routed, **settings)
    batches = [images, (images[0].flip(0), images[1])]
    steps = range(2 * len(routed))
    first = [pairs.draw(batches[step // len(routed)], step) for step in steps]
    assert not torch.equal(first[0].x, first[len(routed)].x)
    calls = []
    run, backbone.run = backbone.run, lambda *args: calls.append("pass") or run(*args)
    again = [pairs.draw(batches[step // len(routed)], step + len(steps)) for step in steps]
    del backbone.run
    assert calls == ([] if store_outputs else ["pass"] * len(steps))
    endless = TrajectoryPairs(backbone, solver, routed, guidance=guidance)
    for step, (one, two) in enumerate(zip(first, again, strict=True)):
        assert same(one, two)
        assert same(one, endless.draw(batches[step // len(routed)], step))


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm_solver_2s", "dpm_solver_2m"])
def test_resuming_inside_a_trajectory_is_bitwise_the_same(backbone, solver):
    solver = solver_for(backbone, solver, 8)
    routed = routed_evaluations(solver.steps)
    guidance = Guidance(backbone.conventions.guidance, SCALES[backbone.conventions.guidance])
    batches = NoiseDataModule(backbone.input_shape, 5, len(routed), batch_size=2).batches

    def pairs(first, last):
        source = TrajectoryPairs(backbone, solver, routed, guidance=guidance, seed=3)
        return [source.draw(batches[step // len(routed)], step) for step in range(first, last)]

    last = 2 * len(routed) + 1
    unbroken = pairs(0, last)
    for start in (1, len(routed) - 1, len(routed), len(routed) + 2):
        assert all(same(a, b) for a, b in zip(pairs(start, last), unbroken[start:], strict=True))


def test_step_noise_is_not_the_starting_noise(make_dit, monkeypatch):
    """The same numbers twice would correlate the first step with the start."""
    net, seed = make_dit(), 0
    solver = solver_for(net, "ddpm", 4)
    batch = NoiseDataModule(net.input_shape, 5, 2, batch_size=2, seed=seed).batches[0]
    drawn = []
    original = l2c.diffusion.ddim.draw_noise
    monkeypatch.setattr("l2c.diffusion.ddim.draw_noise", lambda *a: drawn.append(original(*a)) or drawn[-1])
    pairs = TrajectoryPairs(net, solver, routed_evaluations(solver.steps), guidance=Guidance("dit"), seed=seed)
    pairs.draw(batch, 0)
    assert len(drawn) > 0
    assert not torch.equal(drawn[0], batch[0])
