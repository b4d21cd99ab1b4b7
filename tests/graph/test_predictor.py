"""Reuse from computed outputs, held or extrapolated in t, against a loop written by hand."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch

import l2c
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import taylor_weights
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler, seeded_noise

MODES = ("hold", "hold", "linear", "linear", "hold", "linear")


def by_hand(backbone, graph, noise, labels, scale):
    """Sample with a plain dictionary of everything ever computed."""
    sampler = Sampler(backbone, solver=graph.solver, num_evaluations=graph.num_evaluations, cfg_scale=scale)
    guidance = Guidance(backbone.conventions.guidance, scale)
    y = labels
    if guidance.active:
        y = torch.cat([labels, torch.full_like(labels, backbone.conventions.null_label)])
    computed: dict[int, list] = {}
    trajectory = sampler.solver.trajectory(noise)
    request = next(trajectory)
    while True:
        e, t = request.index, request.t
        cache = []
        for layer, fresh in enumerate(graph.rows[e]):
            past = computed.get(layer, [])
            if fresh:
                cache.append(None)
            elif graph.reuse[e] == "fitted" and len(past) > 1:
                slope = graph.slopes[e][sum(not bit for bit in graph.rows[e][:layer])]
                cache.append(past[-1][1] + slope * (past[-1][1] - past[-2][1]))
            elif graph.reuse[e] == "weighted":
                weights = graph.weights[e][sum(not bit for bit in graph.rows[e][:layer])]
                cache.append(sum(w * past[-1 - i][1] for i, w in enumerate(weights)))
            elif graph.reuse[e] == "linear" and len(past) > 1:
                (t0, a), (t1, b) = past[-2:]
                cache.append(b + (b - a) * (t - t1) / (t1 - t0))
            else:
                cache.append(past[-1][1])
        x = torch.cat([request.x] * 2) if guidance.active else request.x
        output, outputs = backbone.forward_cached(x, torch.full((len(x),), t), y, graph.rows[e], cache)
        for layer, fresh in enumerate(graph.rows[e]):
            if fresh:
                computed.setdefault(layer, []).append((t, outputs[layer]))
        if guidance.active:
            output = guidance.combine(*output.chunk(2))
        try:
            request = trajectory.send(output)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("reuse", [None, MODES, ("linear",) * 6])
def test_sampling_equals_a_loop_by_hand(backbone, make_graph, scale, reuse):
    graph = make_graph(backbone, reuse=reuse, cfg_scale=scale)
    labels = torch.tensor([1, 4, 2])
    noise = seeded_noise(backbone.input_shape, 0, 3)
    with torch.no_grad():
        expected = by_hand(backbone, graph, noise, labels, scale)
    images = Sampler(backbone, graph=graph).sample(labels, noise=noise)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_memory_held_equals_the_prediction(backbone, make_graph):
    graph = make_graph(backbone, reuse=MODES)
    denoiser = Denoiser(backbone, torch.tensor([1, 2]), Guidance(backbone.conventions.guidance), graph)
    solver = Sampler(backbone, graph=graph).solver
    noise = seeded_noise(backbone.input_shape, 0, 2)
    _, outputs = backbone.forward_cached(noise, torch.full((2,), 1.0), torch.tensor([1, 2]), graph.rows[0])
    held = []
    with torch.no_grad():
        solver.sample(denoiser, noise, on_evaluation=lambda e: held.append(denoiser.cached_bytes))
    assert held == [sum(counts) * outputs[0].nbytes for counts in graph.held]
    assert max(held) == graph.peak_kept * outputs[0].nbytes
    assert held[-1] == 0


def test_fitted_slopes_equal_a_loop_by_hand(backbone, make_graph):
    plain = make_graph(backbone, cfg_scale=2.0)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(len(row) - sum(row), generator=generator).tolist() for row in plain.rows]
    graph = plain.replace(reuse=("fitted",) * 6, slopes=tuple(map(tuple, draws)))
    labels, noise = torch.tensor([1, 4]), seeded_noise(backbone.input_shape, 0, 2)
    with torch.no_grad():
        expected = by_hand(backbone, graph, noise, labels, 2.0)
    images = Sampler(backbone, graph=graph).sample(labels, noise=noise)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(images, Sampler(backbone, graph=plain).sample(labels, noise=noise))


def with_weights(plain, seed=0):
    """Return a graph whose reused entries have random sums of as many outputs as there are, up to four."""
    draw, computed, weighted = torch.Generator().manual_seed(seed), [0] * plain.num_layers, []
    for row in plain.rows:
        counts = [min(4, computed[layer]) for layer, fresh in enumerate(row) if not fresh]
        older = [torch.randn(count - 1, generator=draw).tolist() for count in counts]
        weighted.append(tuple((1 - sum(weights), *weights) for weights in older))
        computed = [count + fresh for count, fresh in zip(computed, row, strict=True)]
    return plain.replace(reuse=("weighted",) * len(plain.rows), slopes=(), weights=tuple(weighted))


def test_weighted_sums_equal_a_loop_by_hand(backbone, make_graph):
    plain = make_graph(backbone, cfg_scale=2.0)
    graph = with_weights(plain)
    assert max(len(weights) for row in graph.weights for weights in row) > 2
    labels, noise = torch.tensor([1, 4]), seeded_noise(backbone.input_shape, 0, 2)
    with torch.no_grad():
        expected = by_hand(backbone, graph, noise, labels, 2.0)
    images = Sampler(backbone, graph=graph).sample(labels, noise=noise)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(images, Sampler(backbone, graph=plain).sample(labels, noise=noise))


def test_memory_of_weighted_sums_is_that_of_what_is_read_later(backbone, make_graph):
    graph = with_weights(make_graph(backbone))
    sampler = Sampler(backbone, graph=graph)
    sampler.sample(torch.tensor([1, 2]), seed=0)
    assert sampler.cache_peak_bytes == sampler.cache_bytes(2)
    assert max(max(row) for row in graph.held) > 2


def test_weights_of_two_outputs_are_the_line(backbone, make_graph):
    """A fitted graph said in weights draws the same images, bit for bit."""
    plain = make_graph(backbone)
    slopes = tuple((0.5,) * (len(row) - sum(row)) for row in plain.rows)
    fitted = plain.replace(reuse=("fitted",) * 6, slopes=slopes)
    weighted = tuple(tuple(w for w in row if w) for row in fitted.entry_weights)
    said = plain.replace(reuse=("weighted",) * 6, weights=weighted)
    images = [Sampler(backbone, graph=graph).sample(torch.tensor([1, 4]), seed=0) for graph in (fitted, said)]
    assert torch.equal(*images)
    assert said.held == fitted.held


def test_taylor_weights_are_exact_where_steps_are_even():
    """On evaluations 2, 4, 6 order 1 follows a line exactly; order 2 has the second difference of TaylorSeer."""
    past, line = (6, 4, 2), [3.0 * e + 1 for e in (6, 4, 2)]
    for order in (1, 2):
        weights = taylor_weights(9, past, order)
        assert sum(w * f for w, f in zip(weights, line, strict=False)) == pytest.approx(3.0 * 9 + 1)
        assert sum(weights) == pytest.approx(1)
    square = [e * e for e in past]
    first, second = (36 - 16) / 2, ((36 - 16) / 2 - (16 - 4) / 2) / 2
    expected = 36 + 3 * first + 9 * second / 2
    assert sum(w * f for w, f in zip(taylor_weights(9, past, 2), square, strict=True)) == pytest.approx(expected)
    assert taylor_weights(9, (6,), 2) == (1.0,)
    assert len(taylor_weights(9, (6, 4), 2)) == 2
    assert taylor_weights(9, (6, 5), 1) == (4.0, -3.0)


def one_layer(bits, reuse, **changes):
    return CacheGraph(
        rows=[(bit,) for bit in bits],
        layers=("a",),
        timesteps=range(len(bits), 0, -1),
        model="m",
        solver="ddim",
        reuse=reuse,
        **changes,
    )


@pytest.mark.parametrize(
    ("bits", "reuse", "held"),
    [
        ((1, 0, 0, 1), None, (1, 1, 0, 0)),
        ((1, 1, 0, 0, 1), ("hold",) * 2 + ("linear",) * 2 + ("hold",), (1, 2, 2, 0, 0)),
        ((1, 1, 0, 0), ("hold", "hold", "linear", "hold"), (1, 2, 1, 0)),
        ((1, 0, 1, 0), ("linear",) * 4, (1, 1, 2, 0)),  # one output only at evaluation 1: it is held
        ((1, 1, 1, 0), ("hold",) * 3 + ("linear",), (0, 1, 2, 0)),
    ],
)
def test_lifetimes_end_with_the_last_reader(bits, reuse, held):
    assert tuple(row[0] for row in one_layer(bits, reuse).held) == held


def test_file_keeps_reuse_and_leaves_out_plain_hold(tmp_path):
    schema = json.loads((Path(l2c.__file__).parent / "graph" / "cache_graph.schema.json").read_text())
    linear = one_layer((1, 1, 0), ("hold", "hold", "linear"))
    fitted = one_layer((1, 1, 0), ("hold", "hold", "fitted"), slopes=((), (), (0.25,)))
    summed = one_layer((1, 1, 0), ("hold", "hold", "weighted"), weights=((), (), ((1.5, -0.5),)))
    for graph, written in ((linear, True), (fitted, True), (summed, True), (one_layer((1, 1, 0), None), False)):
        graph.save(tmp_path / "g.json")
        content = json.loads((tmp_path / "g.json").read_text())
        jsonschema.validate(content, schema)
        assert ("reuse" in content) == written
        assert ("slopes" in content) == (graph is fitted)
        assert ("weights" in content) == (graph is summed)
        assert CacheGraph.load(tmp_path / "g.json") == graph
    assert "linear" in linear.summary()


@pytest.mark.parametrize(
    ("reuse", "sentence"),
    [
        (("hold",), "reuse has 1 entries, but the graph has 3 rows"),
        (("hold", "hold", "cubic"), "must be hold or linear or fitted or weighted"),
        (("hold", "hold", "fitted"), r"evaluation 2 reuses 1 layers by fitted and needs 1 finite slopes, got \[\]"),
    ],
)
def test_bad_reuse_is_refused(reuse, sentence):
    with pytest.raises(ValueError, match=sentence):
        one_layer((1, 1, 0), reuse)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((), r"evaluation 2 reuses 1 layers by weighted and needs 1 sets of weights, got 0"),
        (((2.0, -0.5, -0.5),), r"stands in for layer a by 3 outputs; give 1\.\.2 weights: 2 outputs were computed"),
        (((),), r"by 0 outputs; give 1\.\.2 weights"),
        (((1.5, -0.4),), r"add up to 1, got \[1.5, -0.4\]"),
        (((float("nan"), 1.0),), r"must be numbers in \[-1000, 1000\]"),
    ],
)
def test_bad_weights_are_refused(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        one_layer((1, 1, 0), ("hold", "hold", "weighted"), weights=((), (), weights))


def test_slopes_are_given_or_those_of_the_line_or_none():
    reuse = ("hold", "fitted", "linear", "hold", "fitted")
    graph = one_layer((1, 1, 0, 0, 0), reuse, slopes=((), (), (), (), (0.5,)))
    assert graph.entry_slopes == ((0.0,), (0.0,), (1.0,), (0.0,), (0.5,))
    early = one_layer((1, 0, 1), ("fitted",) * 3, slopes=((), (0.5,), ()))
    assert early.entry_slopes[1] == (0.0,)  # with one output only it is held
    with pytest.raises(ValueError, match="by hold and needs 0 finite slopes"):
        one_layer((1, 0), ("hold",) * 2, slopes=((), (0.5,)))
