"""What stands in during training is what the exported graph reads."""

import pytest
import torch

from l2c.diffusion import Guidance, make_solver, schedule_of
from l2c.graph.predictor import stand_ins
from l2c.training.routers.pairs import DataPairs, TrajectoryPairs
from l2c.training.routers.predicted import Predictor, reuse_under
from l2c.training.routers.routers import Routers, routed_evaluations


@pytest.fixture
def solver(backbone):
    conventions = backbone.conventions
    name = "ddim" if conventions.guidance == "dit" else "dpm_solver_2s"
    return make_solver(name, schedule_of(conventions), 8)


@pytest.fixture
def routers(backbone, solver):
    routers = Routers(routed_evaluations(solver.steps), backbone.num_layers, init="normal", seed=1)
    assert 0 < routers.removed_fraction(0.5) < 1
    return routers


@pytest.mark.parametrize("reuse", ["linear", "taylor1", "taylor2", "foca"])
def test_forecasts_are_those_of_the_exported_graph(backbone, solver, routers, make_graph, reuse):
    rows = routers.rows(8, 0.5)
    graph = make_graph(backbone, solver.name, 8, rows=rows, routed=routers.evaluations, **stand_ins(rows, reuse))
    generator = torch.Generator().manual_seed(0)
    passes = {e: tuple(torch.randn(2, 3, 4, generator=generator) for _ in rows[0]) for e in range(8)}
    predictor = Predictor(solver, routers, reuse=reuse)
    most = 0
    for evaluation in routers.evaluations:
        cache = predictor(evaluation, passes)
        for layer in (layer for layer, fresh in enumerate(rows[evaluation]) if not fresh):
            weights = graph.entry_weights[evaluation][layer]
            computed = [e for e in range(evaluation) if rows[e][layer]][::-1]
            wanted = sum(w * passes[e][layer] for e, w in zip(computed, weights, strict=False))
            torch.testing.assert_close(cache[layer], wanted, rtol=1e-4, atol=1e-4)
            most = max(most, len(weights))
    assert most == (2 if reuse in ("linear", "taylor1") else 3)


def test_outputs_are_held_where_the_solver_adds_noise(backbone, routers):
    noisy = make_solver("ddim", schedule_of(backbone.conventions), 8, eta=0.5)
    assert Predictor(noisy, routers, reuse="taylor2").depth == 1
    assert reuse_under(noisy, "linear") == "hold"


def test_hold_is_the_evaluation_before(backbone, solver, routers):
    passes = {e: (torch.full((1,), float(e)),) for e in range(8)}
    assert Predictor(solver, routers)(4, passes) == passes[3]
    with pytest.raises(ValueError, match="must be hold, linear, taylor1, taylor2 or foca, got 'cubic'"):
        Predictor(solver, routers, reuse="cubic")


@pytest.mark.parametrize("reuse", ["linear", "taylor2"])
def test_pairs_from_images_and_from_noise_read_the_passes_they_need(backbone, solver, routers, make_batch, reuse):
    x, _, y = make_batch(backbone)
    predictor = Predictor(solver, routers, reuse=reuse)
    for evaluation in routers.evaluations:
        pairs = DataPairs(backbone, solver, routers.evaluations, predictor=predictor)
        held = DataPairs(backbone, solver, routers.evaluations).pair(x, x.flip(0), y, evaluation)
        lined = pairs.pair(x, x.flip(0), y, evaluation)
        assert torch.allclose(lined.t, held.t)
        assert all(output is not None and output.shape == held.cache[0].shape for output in lined.cache)
    walks = [
        TrajectoryPairs(backbone, solver, routers.evaluations, guidance=Guidance("dit"), predictor=choice)
        for choice in (None, predictor)
    ]
    labels = y % 5
    for step in range(len(routers.evaluations)):
        held, lined = (walk.draw((x, labels), step) for walk in walks)
        assert torch.equal(held.teacher, lined.teacher)
        same = all(torch.equal(a, b) for a, b in zip(held.cache, lined.cache, strict=True))
        assert same == (routers.evaluations[step] == 1)  # nothing to draw a line through yet
