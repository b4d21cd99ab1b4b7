"""Graphs of several budgets in one file."""

import json

import pytest

import l2c

T, F = True, False


def graph(rows, error, **changes):
    made = {
        "rows": rows,
        "layers": ("b0.attn", "b0.mlp"),
        "timesteps": (900.0, 500.0, 100.0),
        "model": "m",
        "solver": "ddim",
        "measured": {
            "evaluations_worth_of_macs": sum(map(sum, rows)) / 2,
            "expected_mse": error,
            "expected_mse_standard_error": error / 10,
        },
    }
    return l2c.CacheGraph(**{**made, **changes})


@pytest.fixture
def graphs():
    return [
        graph(((T, T), (F, F), (F, F)), 0.3),
        graph(((T, T), (F, T), (T, T)), 0.01),
        graph(((T, T), (F, T), (T, F)), 0.1),
    ]


def test_a_ladder_goes_from_the_dearest_down_and_comes_back_from_its_file(graphs, tmp_path):
    ladder = l2c.Ladder(graphs)
    assert list(ladder) == [graphs[1], graphs[2], graphs[0]]
    assert ladder.shares == pytest.approx([5 / 6, 4 / 6, 2 / 6])
    assert ladder.summary().splitlines()[0].split()[0] == "2.50"
    ladder.save(tmp_path / "ladder.json")
    assert list(l2c.Ladder.load(tmp_path / "ladder.json")) == list(ladder)


def test_graphs_of_one_cost_are_all_kept(graphs, tmp_path):
    alike = [graphs[2], graph(((T, T), (T, F), (F, T)), 0.2), graph(((T, T), (T, T), (F, F)), 0.3)]
    l2c.Ladder(alike).save(tmp_path / "ladder.json")
    assert list(l2c.Ladder.load(tmp_path / "ladder.json")) == alike


def test_a_rung_is_chosen_by_cost_or_by_error(graphs):
    ladder = l2c.Ladder(graphs)
    assert ladder.rung(0.7) == ladder.rung(4 / 6) == graphs[2]
    assert ladder.rung(1.0) == ladder.rung(2.6) == ladder.rung("1.1x") == graphs[1]
    assert ladder.rung("3x") == ladder.rung("0.4") == graphs[0]
    assert ladder.within(0.2) == graphs[2]
    with pytest.raises(ValueError, match=r"costs 0.2 of the MACs or less; the cheapest costs 0.33"):
        ladder.rung(0.2)
    with pytest.raises(ValueError, match=r"err by 0.001 or less; the least is 0.01"):
        ladder.within(0.001)


@pytest.mark.parametrize("asked", [float("nan"), -1, "cheap", None, True, [0.5]])
def test_a_rung_is_asked_for_by_a_budget(graphs, asked):
    with pytest.raises(ValueError, match=r"a budget is a share of the uncached MACs .*, got"):
        l2c.Ladder(graphs).rung(asked)


@pytest.mark.parametrize("asked", [float("nan"), -1, "0.5", None, True, [0.5]])
def test_an_expected_error_is_a_number(graphs, asked):
    ladder = l2c.Ladder(graphs)
    with pytest.raises(ValueError, match="an expected error must be a finite number of at least 0, got"):
        ladder.within(asked)


def test_what_is_no_ladder_is_refused(graphs, tmp_path):
    with pytest.raises(ValueError, match="needs one graph at least"):
        l2c.Ladder([])
    for wrong in (None, graphs[0], 1, "x"):
        with pytest.raises(ValueError, match="the graphs of a ladder must be a list"):
            l2c.Ladder(wrong)
    with pytest.raises(ValueError, match="a ladder is made of cache graphs, got None; load them first"):
        l2c.Ladder([None])
    with pytest.raises(ValueError, match="must be for one model and sampler, got 3 evaluations of m and 3 of n"):
        l2c.Ladder([graphs[0], graph(graphs[1].rows, 0.1, model="n")])
    with pytest.raises(ValueError, match="does not say its cost and expected error"):
        l2c.Ladder([graphs[0].replace(measured={})])
    with pytest.raises(FileNotFoundError, match="no ladder of cache graphs at"):
        l2c.Ladder.load(tmp_path / "none.json")
    graphs[0].save(tmp_path / "graph.json")
    with pytest.raises(ValueError, match="is a cache graph, not a ladder of cache graphs; it is read by"):
        l2c.Ladder.load(tmp_path / "graph.json")
    l2c.Ladder(graphs).save(tmp_path / "ladder.json")
    content = json.loads((tmp_path / "ladder.json").read_text())
    content["graphs"]["0.6667"]["rows"][0] = "01"
    (tmp_path / "ladder.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ladder\.json, the graph of 0.6667: "):
        l2c.Ladder.load(tmp_path / "ladder.json")
