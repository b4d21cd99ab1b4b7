"""What stands in during training is what the exported graph reads."""

import pytest
import torch

from l2c.diffusion import Guidance, make_solver, schedule_of
from l2c.training.routers.pairs import DataPairs, TrajectoryPairs
from l2c.training.routers.predicted import Predictor
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


def expected(graph, evaluation, layer, passes):
    """Return the line that the graph's slopes give, through the last two evaluations that compute the layer."""
    computed = [e for e in range(evaluation) if graph.rows[e][layer]][-2:]
    last = passes[computed[-1]][layer]
    slope = graph.slopes[evaluation][layer]
    return last if len(computed) < 2 else last + slope * (last - passes[computed[0]][layer])


def test_lines_are_those_of_the_exported_graph(backbone, solver, routers, make_graph):
    rows = routers.rows(8, 0.5)
    graph = make_graph(backbone, solver.name, 8, rows=rows, routed=routers.evaluations, reuse=("linear",) * 8)
    generator = torch.Generator().manual_seed(0)
    passes = {e: tuple(torch.randn(2, 3, 4, generator=generator) for _ in rows[0]) for e in range(8)}
    predictor = Predictor(solver, routers, reuse="linear")
    for evaluation in routers.evaluations:
        cache = predictor(evaluation, passes)
        for layer in (layer for layer, fresh in enumerate(rows[evaluation]) if not fresh):
            torch.testing.assert_close(cache[layer], expected(graph, evaluation, layer, passes))


def test_hold_is_the_evaluation_before(backbone, solver, routers):
    passes = {e: (torch.full((1,), float(e)),) for e in range(8)}
    assert Predictor(solver, routers)(4, passes) == passes[3]
    with pytest.raises(ValueError, match="must be hold or linear, got 'cubic'"):
        Predictor(solver, routers, reuse="cubic")


def test_pairs_from_images_and_from_noise_read_the_passes_they_need(backbone, solver, routers, make_batch):
    x, _, y = make_batch(backbone)
    predictor = Predictor(solver, routers, reuse="linear")
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
