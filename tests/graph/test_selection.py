"""Some evaluations of a graph as a graph of their own."""

import pytest

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.selection import with_evaluations

T, F = True, False


@pytest.fixture
def graph():
    return CacheGraph(
        rows=((T, T), (T, T), (F, T), (T, T), (F, F), (F, T)),
        layers=("a.attn", "a.mlp"),
        timesteps=(6, 5, 4, 3, 2, 1),
        model="m",
        solver="ddim",
        reuse=("hold", "hold", "fitted", "hold", "weighted", "weighted"),
        slopes=((), (), (0.5,), (), (), ()),
        weights=((), (), (), (), ((2.0, -1.5, 0.5), (1.5, -0.5)), ((1.25, -0.25),)),
    )


def test_all_evaluations_are_the_graph_itself(graph):
    assert with_evaluations(graph, range(6)) == graph


def test_the_first_one_computes_and_missing_outputs_are_held(graph):
    part = with_evaluations(graph, range(2, 6), model="n")
    assert part.rows == ((T, T), (T, T), (F, F), (F, T))
    assert part.timesteps == (4, 3, 2, 1)
    assert part.slopes == ((), (), (), ())
    assert part.weights == ((), (), ((1.0,), (1.5, -0.5)), ((1.25, -0.25),))
    assert part.model == "n"


def test_one_may_be_chosen_again(graph):
    assert with_evaluations(graph, [0, 1, 2, 2], timesteps=(9, 8, 7, 6)).slopes == ((), (), (0.5,), (0.5,))
