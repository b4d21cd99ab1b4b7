"""Graphs as step masks, and what such a mask loses."""

import json

import pytest

from l2c.integrations.cache_dit import export_cache_dit, step_mask


def test_a_graph_of_whole_steps_loses_nothing(make_dit, make_graph):
    dit = make_dit()
    n = dit.num_layers
    graph = make_graph(dit, rows=[(bit,) * n for bit in (True, False, True, True, False, False)])
    mask = step_mask(graph)
    assert mask.mask == (1, 0, 1, 1, 0, 0)
    assert (mask.now_reused, mask.now_computed, mask.linear) == (0, 0, 0)


def test_what_is_lost_is_counted(make_dit, make_graph, tmp_path):
    dit = make_dit()  # four layers
    rows = [(True,) * 4, (False, False, False, True), (True, True, True, False), (False,) * 4]
    graph = make_graph(dit, num_evaluations=4, rows=rows, reuse=("hold", "linear", "linear", "hold"))
    mask = export_cache_dit(graph, tmp_path / "mask.json")
    assert mask.mask == (1, 0, 1, 0)
    assert (mask.now_reused, mask.now_computed, mask.linear, mask.num_entries) == (1, 1, 1, 16)
    assert "1 of 16 entries that the graph computes are skipped" in mask.summary()
    written = json.loads((tmp_path / "mask.json").read_text())["cache_config"]
    assert written["steps_computation_mask"] == [1, 0, 1, 0]
    assert written["num_inference_steps"] == 4
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        step_mask(graph, share=0)
