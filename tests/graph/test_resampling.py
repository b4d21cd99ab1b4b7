"""A graph at other times than its own."""

import pytest

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.resampling import resampled

T, F = True, False


@pytest.fixture
def graph():
    return CacheGraph(
        rows=((T, T), (T, T), (F, T), (T, F)),
        layers=("b0.attn", "b0.mlp"),
        timesteps=(900.0, 600.0, 300.0, 0.0),
        model="m",
        solver="ddim",
        reuse=("hold", "hold", "fitted", "fitted"),
        slopes=((), (), (0.8,), (0.5,)),
    )


def test_a_slope_stays_the_same_multiple_of_the_line(graph):
    other = resampled(graph, (900.0, 600.0, 250.0, 0.0))
    assert other.rows == graph.rows
    assert other.entry_slopes[2][0] == pytest.approx(0.8 * (350 / 300))  # the line's own slope was 1
    assert other.entry_slopes[3][1] == pytest.approx(0.5 * 250 / 350)  # computed at 250 and 600


def test_weights_of_several_outputs_follow_the_lines_through_them():
    rows, weights = ((T,), (T,), (T,), (F,)), ((), (), (), ((2.3, -1.5, 0.2),))
    common = {"layers": ("a",), "model": "m", "solver": "ddim", "reuse": ("weighted",) * 4}
    graph = CacheGraph(rows=rows, timesteps=(900.0, 600.0, 300.0, 0.0), weights=weights, **common)
    other = resampled(graph, (900.0, 600.0, 250.0, 0.0))
    first, second = 1.5 * 250 / 350, -0.2 * (250 / 650) / 0.5  # the lines' slopes were 1 and 0.5
    assert other.entry_weights[3][0] == pytest.approx((1 + first + second, -first, -second), abs=1e-5)
    fewer = resampled(graph, (900.0, 310.0, 0.0))  # two outputs before
    (pair,) = fewer.entry_weights[2]
    assert pair == pytest.approx((1 + 1.5 * 310 / 590, -1.5 * 310 / 590), abs=1e-5)
    assert resampled(graph, (900.0, 0.0)).entry_weights[1] == ((1.0,),)


@pytest.mark.parametrize("times", [(900.0, 900.0, 0.0), (0.0, 500.0, 900.0)])
def test_times_in_another_order_are_refused(graph, times):
    with pytest.raises(ValueError, match="timesteps must decrease from noise to image"):
        resampled(graph, times)


def test_at_its_own_times_a_graph_stays_as_it_is(graph):
    assert resampled(graph, graph.timesteps) is graph


def test_what_was_measured_at_its_own_times_is_not_said_of_others(graph):
    cost = {"macs_per_evaluation": 1000, "evaluations_worth_of_macs": 3.2, "macs_speed_up": 1.25}
    measured = graph.replace(measured={**cost, "expected_mse": 1e-4, "expected_mse_standard_error": 1e-5})
    other = resampled(measured, tuple(900.0 - 120 * i for i in range(8)))
    assert other.measured == {"macs_per_evaluation": 1000}
    assert "evaluations' worth" in measured.summary()
    assert "evaluations' worth" not in other.summary()


def test_twice_the_evaluations_repeat_rows_and_start_with_everything(graph):
    other = resampled(graph, tuple(900.0 - 120 * i for i in range(8)))
    assert other.num_evaluations == 8
    assert all(other.rows[0])
    assert other.provenance["resampled_from"] == 4
    assert set(other.rows) <= set(graph.rows)
