"""Heat maps: nothing is cut off, columns and rows are named, the legend names what occurs."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from l2c.graph.cache_graph import CacheGraph
from l2c.report.figures import graph_heatmap, router_heatmap
from l2c.report.sample_grid import sample_grid

LONG = "FluxPipeline$black$-forest-labs/FLUX.1-dev-with-a-very-long-name-" + "and-more-" * 20
FLUX = [f"transformer_blocks.{b}.{kind}" for b in range(19) for kind in ("attn", "ff", "ff_context")]
FLUX += [f"single_transformer_blocks.{b}" for b in range(38)]
DIT = [f"blocks.{b}.{kind}" for b in range(6) for kind in ("attn", "mlp")]


def graph(layers, model="net", num_evaluations=4):
    rows = [[True] * len(layers)] * 2 + [[i % 2 == 0 for i in range(len(layers))]] * (num_evaluations - 2)
    reuse = ["hold", "hold", "linear", "hold"]
    times = [1 - e / 4 for e in range(num_evaluations)]
    return CacheGraph(rows=rows, layers=layers, timesteps=times, model=model, solver="ddim", reuse=reuse)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def check_all_text_is_inside(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.bbox.size
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            assert min(box.x0, box.y0) >= -1, text.get_text()
            assert max(box.x1 - width, box.y1 - height) <= 1, text.get_text()


@pytest.mark.parametrize("layers", [DIT, FLUX, ["net"], DIT + [f"x.{i}.attn" for i in range(200)]])
@pytest.mark.parametrize("model", ["net", LONG])
def test_no_text_is_cut_off(layers, model):
    check_all_text_is_inside(graph_heatmap(graph(layers, model)))


def test_columns_rows_and_colours_are_named():
    figure = graph_heatmap(graph(DIT))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["A", "M"] * 6
    found = texts(figure)
    assert {"0", "5", "blocks", "layers of each block: A = attention, M = MLP"} <= set(found)
    assert "3  (t 0.25)" in found
    assert {"computed", "reused: the last output, held", "reused: linear in t"} <= set(found)
    assert "reused: fitted slope" not in found


def test_dollars_are_no_formula():
    assert any("$black$" in text.replace("\n", "") for text in texts(graph_heatmap(graph(DIT, LONG))))


def test_router_columns_are_named_by_the_layers():
    figure = router_heatmap(torch.rand(2, len(FLUX)), [1, 3], [9, 7, 5, 3], step=10, layers=FLUX)
    check_all_text_is_inside(figure)
    assert "single_transformer_blocks" in texts(figure)
    assert "A" in texts(router_heatmap(torch.rand(2, 4), [1, 3], [9, 7, 5, 3]))


def test_plain_samples_take_all_kinds_of_images():
    for shape in [(2, 1, 8, 8), (2, 3, 8, 8), (2, 4, 8, 8), (2, 5, 16), (2, 4, 3, 8, 8)]:
        figure = sample_grid({"a method with a long name": torch.randn(shape)}, [3, 4])
        check_all_text_is_inside(figure)
