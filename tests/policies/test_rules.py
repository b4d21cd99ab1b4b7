"""The fixed rules of FORA and TaylorSeer: rows and forecasts that follow from their descriptions."""

import pytest

from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler

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
    assert graph.weights[1][0] == (1.0,)  # one output only
    assert graph.weights[4][0] == pytest.approx((1 + 1 / 3, -1 / 3))
    assert graph.weights[7][0] == pytest.approx((1 + 1 / 3 + 1 / 18, -1 / 3 - 1 / 9, 1 / 18), abs=1e-5)
    linear = make_graph("interval", context, n=3, reuse="linear")
    first = make_graph("interval", context, n=3, reuse="taylor1")
    for a, b in zip(linear.weights[5], first.weights[5], strict=True):
        assert a == pytest.approx(b, rel=0.05)  # the respaced times of DDIM are nearly even
    for made in (graph, linear, first):
        assert Sampler(context.sampler.backbone, graph=made).sample([1], seed=0).isfinite().all()


@pytest.mark.parametrize("name", ["interval", "late_first"])
@pytest.mark.parametrize("reuse", ["linear", "taylor1", "taylor2"])
def test_outputs_are_held_where_the_solver_adds_noise(make_dit, name, reuse):
    noisy = PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=E, eta=0.5))
    graph = make_graph(name, noisy, budget=0.7, reuse=reuse)
    assert graph.num_reused
    assert set(graph.reuse) == {"hold"}


@pytest.mark.parametrize("name", ["interval", "late_first"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reuse": "fitted"}, "reuse must be hold, linear, taylor1 or taylor2, got 'fitted'"),
        ({"part": "half"}, "part must be all, attn or mlp, got 'half'"),
        ({"first": 0}, "first must be a whole number >= 1, got 0"),
        ({"first": 5, "last": 4}, "both together at most the 8 evaluations; got first=5 and last=4"),
    ],
)
def test_options_that_do_not_exist_are_refused(context, name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_graph(name, context, budget=0.7, **options)
