"""Layers and the whole output in one graph: against reuse by hand, on our backbones and wrapped ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import l2c
from l2c.backbones.whole_output import LayersAndOutput, under_layers
from l2c.calibration.cost import Cost, count_macs
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.hub import card
from l2c.graph.resampling import resampled
from l2c.integrations.cache_dit import step_mask
from l2c.integrations.smoothcache import export_smoothcache
from l2c.policies.context import PolicyContext
from l2c.policies.methods.random_layers import random_layers
from l2c.report.decisions import decisions
from l2c.report.page_graph import graph_html
from l2c.sampling.binding import binding_of
from l2c.sampling.correction import reused_entries, save_correction
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import seeded_noise
from l2c.sampling.uncached import uncached_like
from l2c.sampling.unrolled import start_slopes, unroll, with_slopes
from l2c.speed.bench import Bench, Setting
from l2c.speed.report import write_speed_report

STEPS = 7
LABELS = torch.tensor([0, 3])
SCALE = {"dit": 3.0, "uvit": 0.7, "cfg": 2.0}
RUNS = (True, True, True, False, True, False, False)  # evaluations that run the network
OUTPUT = {3: (1.5, -0.25, -0.25), 5: (1.8, -0.8), 6: (2.2, -1.4, 0.2)}  # weights of the last outputs


def sampler_of(backbone, graph=None, **settings):
    where = {} if graph is not None else {"solver": "ddim", "num_evaluations": STEPS}
    return l2c.Sampler(backbone, graph=graph, cfg_scale=SCALE[backbone.conventions.guidance], **where, **settings)


def off(images, expected):
    """Return the largest difference over the largest value."""
    return float((images - expected).detach().abs().max() / expected.abs().max())


def layer_rows(num_layers):
    """Return the layers that each evaluation computes if it runs: two in three at 2, one in three at 4."""
    rows = [[True] * num_layers for _ in RUNS]
    rows[2] = [bool(i % 3) for i in range(num_layers)]
    rows[4] = [i % 3 == 1 for i in range(num_layers)]
    return rows


def mixed_graph(backbone):
    sampler = sampler_of(backbone)
    layers = (*backbone.layer_names, "output")
    rows, weights = [], []
    for e, row in enumerate(layer_rows(len(backbone.layer_names))):
        if RUNS[e]:
            rows.append((*row, True))
            weights.append(tuple((1.25, -0.25) for fresh in row if not fresh))
        else:
            rows.append((False,) * len(layers))
            weights.append((OUTPUT[e],))
    binding = binding_of(backbone, sampler.solver, weights_bound=True, guidance=sampler.guidance)
    blank = CacheGraph.blank(binding).replace(layers=layers, rows=((True,) * len(layers),) * STEPS)
    return blank.replace(rows=rows, routed=None, reuse=("weighted",) * STEPS, weights=weights)


def by_hand(backbone, noise):
    """Return images of a trajectory whose layers and outputs are replaced as `mixed_graph` says."""
    sampler = sampler_of(backbone)
    network = GuidedBackbone(backbone, LABELS, Guidance(backbone.conventions.guidance, sampler.guidance.scale))
    past, computed, calls = [], [[] for _ in backbone.layer_names], iter(range(STEPS))

    def answer(x, t):
        e = next(calls)
        if not RUNS[e]:
            return sum(w * output for w, output in zip(OUTPUT[e], past, strict=False))
        row = layer_rows(len(backbone.layer_names))[e]
        cache = [None if fresh else 1.25 * of[0] - 0.25 * of[1] for fresh, of in zip(row, computed, strict=True)]
        output, layers = backbone.forward_cached(*network.inputs(x, t), network.y, row, cache)
        for fresh, layer, of in zip(row, layers, computed, strict=True):
            if fresh:
                of.insert(0, layer)
        past.insert(0, network.merge(output, t))
        return past[0]

    with torch.no_grad():
        return sampler.solver.sample(answer, noise)


def test_reuse_is_that_done_by_hand(backbone):
    noise = seeded_noise(backbone.input_shape, 2, 2)
    graph = mixed_graph(backbone)
    images = sampler_of(backbone, graph).sample(LABELS, noise=noise)
    expected = by_hand(backbone, noise)
    assert off(images, expected) < 1e-5
    assert off(sampler_of(backbone).sample(LABELS, noise=noise), expected) > 1e-3
    assert CacheGraph.from_json(graph.to_json()) == graph


def test_layers_of_a_wrapped_module_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, t, y):
            x = x + (1 + t[:, None, None, None] / 1000) * self.first(x)
            return torch.tanh(x + self.second(x) + y[:, None, None, None] / 5)

    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    backbone = l2c.wrap(
        net, layers=["first", "second"], input_shape=(3, 8, 8), labels="y", num_labels=5, null_label=5
    )
    noise = seeded_noise(backbone.input_shape, 2, 2)
    images = sampler_of(backbone, mixed_graph(backbone)).sample(LABELS, noise=noise)
    assert off(images, by_hand(backbone, noise)) < 1e-5


def test_unrolled_images_are_the_samplers_and_depend_on_every_slope(backbone):
    graph, noise = mixed_graph(backbone), seeded_noise(backbone.input_shape, 2, 2)
    uncached = sampler_of(LayersAndOutput(backbone))
    slopes = start_slopes(graph).requires_grad_()
    images, _ = unroll(uncached, graph, noise, LABELS, slopes)
    assert off(images, sampler_of(backbone, graph).sample(LABELS, noise=noise)) < 1e-5
    images.square().sum().backward()
    assert len(slopes) == len(reused_entries(graph)) == sum(map(len, graph.reused))
    assert (slopes.grad[:, 0] != 0).all()
    again = with_slopes(graph, slopes.detach())
    assert again.rows == graph.rows
    assert torch.allclose(start_slopes(again), start_slopes(graph), atol=1e-5)


def test_an_evaluation_that_reuses_the_output_runs_no_block_and_costs_nothing(backbone):
    ran = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    graph, cost = mixed_graph(backbone), count_macs(backbone)
    sampler = sampler_of(backbone, graph)
    sampler.sample(LABELS, seed=0)
    assert len(ran) == sum(RUNS) * len(backbone.blocks)
    rows = zip(layer_rows(len(backbone.layer_names)), RUNS, strict=True)
    assert cost.of_evaluations(graph) == [cost.of_row(row) if runs else 0 for row, runs in rows]
    assert cost.of_graph(graph) == sum(cost.of_evaluations(graph))
    assert count_macs(sampler.backbone) == cost


def test_memory_is_that_predicted(backbone):
    sampler = sampler_of(backbone, mixed_graph(backbone))
    sampler.sample(LABELS, seed=0)
    assert 0 < sampler.cache_peak_bytes <= sampler.cache_bytes(2)
    assert sampler.cache_bytes(2) <= 1.6 * sampler.cache_peak_bytes
    half = sampler_of(backbone, mixed_graph(backbone), cache_dtype="bf16")
    assert half.sample(LABELS, seed=0).isfinite().all()
    assert half.cache_bytes(2) == sampler.cache_bytes(2) // 2


def test_compiled_blocks_give_the_same_images(backbone):
    graph = mixed_graph(backbone)
    plain = sampler_of(backbone, graph)
    compiled = sampler_of(backbone, graph).compile(2, backend="eager", progress=False)
    assert compiled.compiled
    assert torch.equal(compiled.sample(LABELS, seed=1), plain.sample(LABELS, seed=1))


def test_a_correction_reaches_layers_and_outputs(make_dit, tmp_path):
    backbone = make_dit()
    graph = mixed_graph(backbone)
    width = {graph.num_layers - 1: backbone.out_channels}
    widths = [width.get(layer, 32) for _, layer in reused_entries(graph)]
    scale, shift = [torch.ones(width) for width in widths], [torch.zeros(width) for width in widths]
    same = save_correction(tmp_path / "same.safetensors", graph, scale, shift)
    plain = sampler_of(backbone, graph).sample(LABELS, seed=1)
    assert off(sampler_of(backbone, same).sample(LABELS, seed=1), plain) < 1e-5
    shift[reused_entries(graph).index((3, graph.num_layers - 1))] += 5.0  # of the first output that is reused
    moved = save_correction(tmp_path / "moved.safetensors", graph, scale, shift)
    assert (sampler_of(backbone, moved).sample(LABELS, seed=1) - plain).abs().mean() > 0.01


def test_other_times_keep_what_runs(backbone):
    graph = mixed_graph(backbone)
    assert [row[-1] for row in resampled(graph, graph.timesteps[::2]).rows] == list(RUNS[::2])
    slopes = tuple(tuple(-0.5 for _ in layers) for layers in graph.reused)
    fitted = graph.replace(reuse=("fitted",) * STEPS, slopes=slopes, weights=())
    half = resampled(fitted, graph.timesteps[::2])
    assert [row[-1] for row in half.rows] == list(RUNS[::2])
    assert half.reused[-1] == (half.num_layers - 1,)


def test_pictures_and_texts_tell_idle_layers(make_dit):
    graph = mixed_graph(make_dit())
    drawn = decisions(graph)
    assert set(drawn[3][:-1]) == {"idle"}
    assert drawn[3][-1] == "weighted"
    assert "-" * (graph.num_layers - 1) + "." in graph.summary()
    assert ">output</text>" in graph_html(graph, caption="it")


def test_costs_of_a_network_of_one_layer():
    cost = Cost((30,), 10)
    whole = CacheGraph(rows=((True,), (False,)), layers=("output",), timesteps=(9.0, 1.0), model="Net", solver="ddim")
    both = whole.replace(rows=((True, True), (False, False)), layers=("block", "output"))
    layer = whole.replace(layers=("block",))
    assert [cost.of_evaluations(graph) for graph in (whole, both, layer)] == [[40, 0], [40, 0], [40, 10]]
    assert cost.of_output.of_evaluations(whole) == [40, 0]


def test_a_report_of_its_speed_is_written(backbone, tmp_path):
    graph, cost = mixed_graph(backbone), count_macs(backbone)
    bench = Bench(backbone, graph, cost, cfg_scale=SCALE[backbone.conventions.guidance])
    speeds = bench.run([Setting(1, "fp32", "default", "eager")], repetitions=1, by_evaluation=True)
    write_speed_report(tmp_path, graph, cost, speeds, command="it", notes=[])
    assert (tmp_path / "evaluations.png").stat().st_size > 1000


def test_other_forms_take_the_layers_or_refuse(make_dit, tmp_path):
    graph = mixed_graph(make_dit())
    mask = step_mask(graph)
    assert mask.mask == (1, 1, 0, 0, 0, 0, 0)  # half of the layers are reused at 2, three of four at 4
    assert (mask.now_reused, mask.now_computed, mask.num_entries) == (3, 0, 4 * STEPS)
    held = graph.replace(reuse=(), weights=())
    for alone in (held, CacheGraph.blank(replace(graph.binding, layers=("output",)))):
        with pytest.raises(ValueError, match="attention and MLP in turn, but this graph has the layer output in"):
            export_smoothcache(alone, tmp_path / "out.json")
    assert "which do not run (`-`) because the whole output is reused" in card(graph)


def test_one_kind_at_a_time_is_measured(make_dit):
    backbone = make_dit()
    uncached = uncached_like(sampler_of(backbone, mixed_graph(backbone)))
    for use in (l2c.Calibration.measure, PolicyContext.of):
        with pytest.raises(ValueError, match=r"has layers and its whole output, .* sampler\.backbone\.network"):
            use(uncached)


def test_random_outputs_at_the_same_cost(backbone):
    graph, cost = mixed_graph(backbone), count_macs(backbone)
    drawn = random_layers(graph, cost, seed=0)
    assert drawn.layers == ("output",)
    assert abs(cost.evaluations_worth(drawn) - cost.evaluations_worth(graph)) <= 0.5


def test_wrong_rows_and_names_are_refused(make_dit):
    backbone = make_dit()
    graph = mixed_graph(backbone)
    rows = list(graph.rows)
    rows[3] = (True, *rows[3][1:])
    with pytest.raises(ValueError, match=r"row 3 reuses the whole output, but computes layer blocks.0.attn"):
        graph.replace(rows=rows)
    with pytest.raises(ValueError, match=r"must be the last one, got blocks\.1\.mlp after it"):
        graph.replace(layers=("output", *graph.layers[:-1]))
    with pytest.raises(ValueError, match="needs 1 sets of weights, got 5"):
        graph.replace(weights=(*graph.weights[:3], ((1.0,),) * 5, *graph.weights[4:]))
    whole = under_layers(backbone, graph.layers)
    x, t, y = torch.zeros(1, *backbone.input_shape), torch.ones(1), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="row has 4 entries, but this backbone has 5 layers"):
        whole.forward_cached(x, t, y, (True,) * 4)
    with pytest.raises(ValueError, match="layer output is to be reused, but nothing is cached"):
        whole.forward_cached(x, t, y, (False,) * 5)
    with pytest.raises(ValueError, match="not on both"):
        whole.forward_cached(x, t, y, torch.ones(5))
    with pytest.raises(ValueError, match="got LayersAndOutput"):
        l2c.WholeOutput(whole)
