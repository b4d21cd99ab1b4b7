"""SmoothCache's schedule files in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.integrations.smoothcache import export_smoothcache, import_smoothcache


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "schedule.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_lists_for_all_blocks(make_dit, write):
    net = make_dit()
    graph = import_smoothcache(write({"attn": [1, 0, 0], "mlp": [1, 1, 0]}), net)
    assert graph.rows == ((True,) * 4, (False, True) * 2, (False,) * 4)
    assert graph.routed == (1, 2)
    assert graph.fingerprint == fingerprint(net)
    assert l2c.Sampler(net, graph=graph).timesteps == graph.timesteps


def test_lists_per_block_and_names_of_diffusers(make_dit, write):
    content = {"attn1-0": [1, 0], "ff-0": [1, 1], "attn1-1": [1, 1], "ff-1": [1, 0]}
    assert import_smoothcache(write(content), make_dit()).rows[1] == (False, True, True, False)
    assert import_smoothcache(write({"attn1": [1, 0]}), make_dit()).rows[1] == (False, True) * 2


def test_what_goes_out_comes_in_again(make_dit, make_graph, tmp_path):
    net = make_dit()
    graph = make_graph(net)
    export_smoothcache(graph, tmp_path / "out.json")
    assert set(json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))) == {
        "attn-0", "mlp-0", "attn-1", "mlp-1",
    }  # fmt: skip
    assert import_smoothcache(tmp_path / "out.json", net).rows == graph.rows
    alike = make_graph(net, num_evaluations=2, rows=((True,) * 4, (False, True) * 2))
    export_smoothcache(alike, tmp_path / "alike.json")
    assert json.loads((tmp_path / "alike.json").read_text(encoding="utf-8")) == {"attn": [1, 0], "mlp": [1, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([1, 0], "holds no schedule"),
        ({}, "holds no schedule"),
        ({"conv": [1, 0]}, "unknown layer 'conv'"),
        ({"attn": [1, 2]}, "must be a list of 1"),
        ({"attn": "10"}, "must be a list of 1"),
        ({"attn": "\x1b]0;owned\x07"}, r"must be a list of 1 .*got '\\x1b\]0;owned"),
        ({"attn": ["\x1b]0;owned\x07"]}, r"must be a list of 1 .*got \[[^\x1b\x07]*owned[^\x1b\x07]*$"),
        ({"attn": [1, 0], "mlp": [1]}, "different lengths"),
        ({"attn-2": [1, 0]}, "names block 2, but DiT has 2 blocks"),
        ({"attn-0": [1, 0], "mlp-0": [1, 0]}, "names 1 blocks, but DiT has 2"),
        ({"attn": [0, 1]}, "the first row reuses layer"),
    ],
)
def test_bad_files_are_refused(make_dit, write, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        import_smoothcache(write(content), make_dit())
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no schedule at"):
        import_smoothcache("missing.json", make_dit())


SCHEDULES = {
    "30-N-2-fora.json": (30, 0.5 - 1 / 30),
    "30-N-3-threshold-0.35.json": (30, None),
    "50-N-2-fora.json": (50, 0.48),
    "50-N-2-l2c.json": (50, None),
    "50-N-3-threshold-0.08.json": (50, None),
    "50-N-3-threshold-0.18.json": (50, None),
    "diffuser_schedule.json": (50, None),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_schedules_read_and_come_back(reference: Path, tmp_path, name):
    path = reference / "smoothcache" / name
    num_evaluations, removed = SCHEDULES[name]
    graph = import_smoothcache(path, "dit_xl2")
    assert (graph.num_evaluations, graph.num_layers) == (num_evaluations, 56)
    if removed is not None:
        assert graph.removed_fraction_overall == pytest.approx(removed)
    export_smoothcache(graph, tmp_path / name)
    assert import_smoothcache(tmp_path / name, "dit_xl2").rows == graph.rows
    if name != "diffuser_schedule.json":  # that one has another network's names and leaves the MLPs out
        assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == json.loads(
            path.read_text(encoding="utf-8")
        )


def test_published_ddim50_router_in_this_form(reference: Path):
    path = reference / "smoothcache" / "50-N-2-l2c.json"
    graph = import_smoothcache(path, "dit_xl2", routed="l2c")
    assert 100 * graph.removed_fraction == pytest.approx(47.43, abs=0.005)
    assert 100 * graph.removed_fraction_of("mlp") == pytest.approx(47.85, abs=0.01)
    assert 100 * graph.removed_fraction_of("attn") == pytest.approx(47.00, abs=0.01)
    assert graph.routed == tuple(range(1, 50, 2))
    assert import_smoothcache(path, "dit_xl2").rows == graph.rows  # without the word, three full rows don't count
