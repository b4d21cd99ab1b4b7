"""The fixed rules of FORA, TaylorSeer, FoCa and PAB: rows and forecasts that follow from their descriptions."""

import pytest
import torch

from l2c.backbones.whole_output import WholeOutput
from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.graph.predictor import foca_weights, taylor_weights
from l2c.policies.budget import Worth
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler, seeded_noise

E = 8


@pytest.fixture
def context(make_dit):
    return PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=E))


def bits(graph, layer=0):
    return "".join(str(int(row[layer])) for row in graph.rows)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, "10101010"),
        ({"phase": 1}, "11010101"),
        ({"first": 3}, "11101010"),
        ({"last": 3}, "10101111"),
        ({"n": 3, "phase": 2}, "11001001"),
        ({"n": 3, "first": 2, "last": 2}, "11010011"),
    ],
)
def test_rows_of_an_interval(context, options, rows):
    assert bits(make_graph("interval", context, **options)) == rows


@pytest.mark.parametrize(("worth", "computed"), [(4.5, 4), (4.51, 5)])
def test_a_budget_midway_between_two_graphs_takes_the_one_that_costs_less(make_dit, worth, computed):
    sampler = Sampler(WholeOutput(make_dit()), solver="ddim", num_evaluations=E)
    noise = seeded_noise(sampler.backbone.input_shape, 7, 2)
    responses = measure_responses(sampler, torch.tensor([1, 2]), noise, num_probes=1)
    blank = PolicyContext.of(sampler).blank
    context = PolicyContext.of(sampler, Measurements({"responses": responses}, blank.binding))
    for name in ("interval", "late_first", "random", "gram"):
        graph = make_graph(name, context, budget=Worth(worth))
        assert sum(all(row) for row in graph.rows) == computed, name


def test_attention_alone_is_reused(context):
    graph = make_graph("interval", context, part="attn")
    assert (bits(graph, 0), bits(graph, 1)) == ("10101010", "1" * E)
    late = make_graph("late_first", context, budget=0.9, part="mlp", last=2)
    assert all(all(row[::2]) for row in late.rows)
    assert late.rows[-2:] == ((True,) * 4,) * 2
    assert late.num_reused


def test_taylor_forecasts_by_evaluations(context):
    graph = make_graph("interval", context, n=3, reuse="taylor2")
    assert bits(graph) == "10010010"
    assert graph.entry_weights[1][0] == (1.0,)  # one output only
    assert graph.entry_weights[4][0] == pytest.approx((1 + 1 / 3, -1 / 3))
    assert graph.entry_weights[7][0] == pytest.approx((1 + 1 / 3 + 1 / 18, -1 / 3 - 1 / 9, 1 / 18), abs=1e-5)
    linear = make_graph("interval", context, n=3, reuse="linear")
    first = make_graph("interval", context, n=3, reuse="taylor1")
    for a, b in zip(linear.entry_weights[5], first.entry_weights[5], strict=True):
        assert a == pytest.approx(b, rel=0.05)  # the respaced times of DDIM are nearly even
    for made in (graph, linear, first):
        assert Sampler(context.sampler.backbone, graph=made).sample([1], seed=0).isfinite().all()


def test_foca_goes_on_by_the_mean_of_the_computed_and_the_forecast_change():
    values = {1: 2.0, 3: 5.0, 6: 7.0}  # of the evaluations that computed
    change = (values[6] - values[3]) / 3
    before = values[3] + 2 * (values[3] - values[1]) / 2  # what stood in at 5, on the line through 1 and 3
    now, found = values[6], []
    for _ in range(3):
        forecast = 4 / 3 * now - before / 3 + 2 / 3 * (now - before)  # equation 7
        by_forecast = (3 * forecast - 4 * now + before) / 2  # equation 6
        before, now = now, now + (change + by_forecast) / 2  # equation 8
        found.append(now)
    for e, value in zip((7, 8, 9), found, strict=True):
        weights = foca_weights(e, [6, 3, 1, 0])
        assert sum(w * values[past] for w, past in zip(weights, (6, 3, 1), strict=True)) == pytest.approx(
            value, abs=1e-4
        )
    assert foca_weights(5, [4]) == (1.0,)
    assert foca_weights(6, [4, 3]) == taylor_weights(6, [4, 3], 1)


def test_pab_holds_attention_at_middle_times(context):
    graph = make_graph("pab", context, n=3)
    inside = [100 < t < 800 for t in graph.timesteps]
    for e, row in enumerate(graph.rows):
        assert all(row[1::2])
        assert row[0] == (not inside[e] or e % 3 == 0)
    wider = make_graph("pab", context, n=3, start=1000, end=0)
    assert wider.num_reused > graph.num_reused
    with pytest.raises(ValueError, match="no evaluation has a timestep between end=300 and start=200"):
        make_graph("pab", context, start=200, end=300)
    assert context.cost.evaluations_worth(make_graph("pab", context, budget=0.88)) == pytest.approx(0.88 * E, abs=0.3)
    with pytest.raises(ValueError, match="out of reach"):
        make_graph("pab", context, budget=0.3)


@pytest.mark.parametrize("name", ["interval", "late_first"])
@pytest.mark.parametrize("reuse", ["linear", "taylor1", "taylor2", "foca"])
def test_outputs_are_held_where_the_solver_adds_noise(make_dit, name, reuse):
    noisy = PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=E, eta=0.5))
    graph = make_graph(name, noisy, budget=0.7, reuse=reuse)
    assert graph.num_reused
    assert set(graph.reuse) == {"hold"}


@pytest.mark.parametrize("name", ["interval", "late_first"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reuse": "fitted"}, "reuse must be hold, linear, taylor1, taylor2 or foca, got 'fitted'"),
        ({"part": "half"}, "part must be all, attn or mlp, got 'half'"),
        ({"first": 0}, "first must be a whole number >= 1, got 0"),
        ({"first": 5, "last": 4}, "both together at most the 8 evaluations; got first=5 and last=4"),
    ],
)
def test_options_that_do_not_exist_are_refused(context, name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_graph(name, context, budget=0.7, **options)
