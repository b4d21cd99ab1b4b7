"""The cache graph: round trip, schema, refusals, and statistics against brute force."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import l2c
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import ERROR, SPREAD, WORTH, made_by

SCHEMA = json.loads((Path(l2c.__file__).parent / "graph" / "cache_graph.schema.json").read_text(encoding="utf-8"))
LAYERS = ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
ROWS = ("1111", "1010", "1111", "0010", "0011")


def bits(rows):
    return tuple(tuple(bit == "1" for bit in row) for row in rows)


def make(**changes):
    arguments = {
        "rows": bits(ROWS),
        "layers": LAYERS,
        "timesteps": (999.0, 749.5, 500.0, 250.0, 0.0),
        "model": "dit_test",
        "solver": "ddim",
        "routed": (1, 3, 4),
        "fingerprint": "sha256:" + 64 * "a",
        "solver_options": {"eta": 0.0},
        "guidance": "dit",
        "cfg_scale": 1.5,
        "provenance": {"method": "test", "hyperparameters": {"penalty": 1e-3}},
        "measured": {"macs_speed_up": 1.25},
    }
    return CacheGraph(**{**arguments, **changes})


@pytest.fixture
def content():
    """The file's content, to be damaged."""
    content = json.loads(make().to_json())
    del content["digest"]  # else every change would be refused for it
    return content


# --- the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"routed": None},
        {"routed": (1, 2, 3, 4)},
        {"fingerprint": None, "guidance": None, "cfg_scale": None, "solver_options": {}, "measured": {}},
        {"rows": bits(["1111"] * 5), "routed": None},
        {"provenance": {"author": "Zoë", "nested": [1, {"a": None}]}},
        {
            "guidance_options": {
                "guidance_scale_2": 3.0,
                "cfg_normalization": True,
                "a": None,
                "b": "c",
                "d": [7, 8.5],
            }
        },
    ],
    ids=["all fields", "routed follows", "routed but full", "bare", "all computed", "any text", "guidance options"],
)
def test_round_trip(tmp_path, changes):
    graph = make(**changes)
    path = tmp_path / "new folder" / "graph.json"
    graph.save(path)
    assert CacheGraph.load(path) == graph
    assert CacheGraph.load(str(path)).to_json() == graph.to_json()
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(path.read_text(encoding="utf-8")))


def test_schema_is_valid_and_refuses_what_the_package_refuses(content):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    assert validator.is_valid(content)
    for key, value in (("version", 2), ("format", "other"), ("rows", ["112"]), ("rows", []), ("routed", [0])):
        assert not validator.is_valid({**content, key: value}), key
    for key in SCHEMA["required"]:
        assert not validator.is_valid({k: v for k, v in content.items() if k != key}), key


def test_the_file_can_be_read_by_people(content):
    assert content["format"] == "l2c-cache-graph"
    assert content["version"] == 1
    assert content["rows"] == list(ROWS)
    assert content["sampler"]["guidance"] == {"mode": "dit", "scale": 1.5}
    assert max(map(len, make().to_json().splitlines())) < 120


def test_a_file_without_routed_takes_the_rows_that_reuse(content):
    del content["routed"]
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert CacheGraph.from_json(json.dumps(content)).routed == (1, 3, 4)


def test_saving_replaces_whole_files_only(tmp_path):
    path = tmp_path / "graph.json"
    make().save(path)
    with pytest.raises(ValueError):
        make(measured={"error": float("nan")}).save(path)
    assert CacheGraph.load(path) == make()
    assert [p.name for p in tmp_path.iterdir()] == ["graph.json"]


# --- refusals -----------------------------------------------------------------------------------------------


def refused(text):
    """Return the message, which must be one sentence on one line."""
    with pytest.raises(ValueError) as caught:
        CacheGraph.from_json(text if isinstance(text, str) else json.dumps(text))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(share):
    text = make().to_json().rstrip()
    assert "not valid JSON" in refused(text[: int(share * len(text))])


def test_files_that_are_no_graphs_are_refused(tmp_path):
    assert "format is 'list'" in refused("[]")
    assert "format is None, must be 'l2c-cache-graph'" in refused("{}")
    with pytest.raises(FileNotFoundError, match=r"no cache graph at .*missing\.json: neither .*; make one"):
        CacheGraph.load(tmp_path / "missing.json")
    with pytest.raises(ValueError, match=r"is a folder without a cache_graph\.json; give a graph's file"):
        CacheGraph.load(tmp_path)
    make().save(tmp_path / "run" / "cache_graph.json")
    assert CacheGraph.load(tmp_path / "run") == make()
    binary = tmp_path / "weights.pt"
    binary.write_bytes(b"\x80\x02\xff")
    with pytest.raises(ValueError, match=r"weights\.pt is not a text file in UTF-8"):
        CacheGraph.load(binary)
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        CacheGraph.load(broken)


def with_change(content, path, value):
    """Set one field, given as `a.b.2`; `...` deletes it."""
    changed = copy.deepcopy(content)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    target = changed
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", "smoothcache", "format is 'smoothcache', must be 'l2c-cache-graph'"),
        ("version", 2, "version 2 is unknown, this package reads version 1"),
        ("version", "1", "version '1' is unknown"),
        ("version", ..., "version None is unknown"),
        ("rows.2", "111", "row 2 has 3 entries, but the graph has 4 layers"),
        ("rows.0", "1101", "the first row reuses layer blocks.1.attn"),
        ("rows.1", "10x0", "row 1 must be a string of 0 (reuse) and 1 (compute), got '10x0'"),
        ("rows.1", "1 10", "row 1 must be a string of 0"),
        ("rows.1", [1, 0, 1, 0], "row 1 must be a string of 0"),
        ("rows.1", "", "row 1 has 0 entries"),
        ("rows", ["1111"] * 4, "4 rows but 5 timesteps"),
        ("rows", [], "needs rows and layers, got 0 and 4"),
        ("rows", {}, "rows must be list, got dict"),
        ("sampler.timesteps.2", 749.5, "must decrease from noise to image, got 749.5 after 749.5"),
        ("sampler.timesteps.2", 800, "must decrease from noise to image, got 800 after 749.5"),
        ("sampler.timesteps.4", ..., "5 rows but 4 timesteps"),
        ("sampler.timesteps.0", float("nan"), "not a number that JSON knows"),
        ("sampler.timesteps.0", float("inf"), "not a number that JSON knows"),
        ("sampler.timesteps.1", "749", "sampler.timesteps[1] must be int or float, got str"),
        ("sampler.timesteps.1", True, "sampler.timesteps[1] must be int or float, got bool"),
        ("sampler.timesteps", 999, "sampler.timesteps must be list, got int"),
        ("sampler.guidance.options", 3, "sampler.guidance.options must be values by name, got 3"),
        ("sampler.guidance.options", {"pag_scale": [[1]]}, "sampler.guidance.options['pag_scale'] must be a"),
        ("sampler.guidance.options", {"pag_scale": {}}, "sampler.guidance.options['pag_scale'] must be a"),
        ("sampler.num_evaluations", 6, "sampler.num_evaluations is 6, but there are 5 rows"),
        ("sampler.solver", None, "sampler.solver must be str, got NoneType"),
        ("sampler.guidance.scale", "1.5", "sampler.guidance.scale must be int or float or null, got str"),
        ("sampler.guidance", ..., "sampler.guidance is missing"),
        ("sampler.options", [], "sampler.options must be dict, got list"),
        ("sampler", ..., "sampler is missing"),
        ("model", "dit", "model must be dict, got str"),
        ("model.name", 3, "model.name must be str, got int"),
        ("model.layers", ["a", "a", "b", "c"], "layer names must differ"),
        ("model.layers", ["a"], "row 0 has 4 entries, but the graph has 1 layers"),
        ("model.layers.0", 7, "model.layers[0] must be str, got int"),
        ("model.fingerprint", ..., "model.fingerprint is missing"),
        ("model.fingerprint", 5, "model.fingerprint must be str or null, got int"),
        ("routed", [1, 3], "row 4 reuses layers, but evaluation 4 is not among the routed ones [1, 3]"),
        ("routed", [0, 1, 3, 4], "evaluation 0 cannot be routed"),
        ("routed", [1, 3, 4, 5], "evaluation 5 cannot be routed in a graph of 5 evaluations"),
        ("routed", ["1"], "routed[0] must be int, got str"),
        ("routed", 1, "routed must be list, got int"),
        ("provenance", ..., "provenance is missing"),
        ("statistics", None, "statistics must be dict, got NoneType"),
        ("statistics.expected_mse", -1, "expected_mse must be a finite number of at least 0, got -1"),
        ("statistics.expected_mse", "small", "expected_mse must be a finite number of at least 0, got 'small' (str)"),
        ("statistics.evaluations_worth_of_macs", 6, "evaluations_worth_of_macs must be a finite number in [1e-09, 5"),
        ("statistics.expected_mse_unknown", None, "expected_mse_unknown must be a text, got None"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(content, path, value, says):
    assert says in refused(with_change(content, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sampler.guidance.scale", float("nan")),
        ("sampler.options.eta", "much"),
        ("sampler.timesteps.0", 10**400),
        ("version", True),
    ],
    ids=["scale NaN", "eta a word", "t beyond floats", "version true"],
)
def test_numbers_that_are_none_are_refused(content, path, value):
    assert refused(with_change(content, path, value))


@pytest.mark.parametrize("key", ["sampler", "model", "rows", "provenance", "statistics"])
def test_missing_fields_are_named(content, key):
    assert f"the field {key} is missing" in refused(with_change(content, key, ...))


def test_rows_given_as_text_are_not_taken_for_bools():
    """`bool("0")` is True: such a graph would silently compute everything."""
    try:
        graph = make(rows=ROWS)
    except (TypeError, ValueError):
        return
    assert graph.rows == bits(ROWS)


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rows": ((1.0,) * 4, (0.5, 1, 1, 1))},
            "rows must hold bools, got 0.5; say for instance router > threshold",
        ),
        ({"rows": np.array([[1, 1, 1, 1], [np.nan, 1, 1, 1]])}, "rows must hold bools, got .*nan"),
        ({"rows": (("1",) * 4,)}, "rows must hold bools, got '1'"),
        ({"rows": (True, False)}, r"a row must be a list, got True \(bool\)"),
        ({"rows": None}, "rows must be a list, got None"),
        ({"layers": "abcd"}, r"layers must be a list, got 'abcd' \(str\)"),
        ({"layers": (1, 2, 3, 4)}, "a layer's name must be a text, got 1"),
        ({"timesteps": 5}, "timesteps must be a list, got 5"),
        ({"model": None}, "model must be a text, got None"),
        ({"solver": 1}, "solver must be a text, got 1"),
        ({"fingerprint": 1}, "fingerprint must be a text, got 1"),
        ({"routed": 1}, "routed must be a list, got 1"),
        ({"reuse": "hold"}, "reuse must be a list, got 'hold'"),
        ({"slopes": ((), ("0.5",))}, "slopes must be a list of numbers, got '0.5'"),
        ({"weights": ((), (1.0,))}, "weights must be a list, got 1.0"),
        ({"cfg_scale": False}, "cfg_scale must be a finite number"),
        ({"solver_options": [1]}, "solver_options must be values by name"),
        ({"provenance": [1]}, "provenance must be values by name"),
        ({"measured": {ERROR: float("nan")}}, f"{ERROR} must be a finite number of at least 0, got nan"),
        ({"measured": {SPREAD: float("inf")}}, f"{SPREAD} must be a finite number of at least 0, got inf"),
        ({"measured": {WORTH: None}}, f"{WORTH} must be a finite number in"),
        ({"measured": {WORTH: True}}, f"{WORTH} must be a finite number in"),
    ],
)
def test_attributes_of_another_kind_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        make(**changes)


def test_numpy_bools_are_converted():
    graph = make(rows=np.array(bits(ROWS)), timesteps=np.linspace(999, 0, 5), routed=np.array([1, 3, 4]))
    assert all(bit is True or bit is False for row in graph.rows for bit in row)
    assert graph.rows == bits(ROWS)
    assert CacheGraph.from_json(graph.to_json()) == graph


def test_graphs_cannot_be_changed_in_place():
    graph = make()
    with pytest.raises(AttributeError):
        graph.rows = ()
    changed = graph.replace(cfg_scale=None)
    assert (graph.cfg_scale, changed.cfg_scale) == (1.5, None)
    assert changed.rows == graph.rows


@pytest.mark.parametrize("seed", range(5))
def test_removed_fractions_by_counting(random_rows, seed):
    rows = random_rows(9, 4, seed=seed, fresh=0.7)
    routed = {e for e, row in enumerate(rows) if not all(row)} | {4}
    graph = make(rows=rows, timesteps=range(9, 0, -1), routed=routed)
    reused = [(e, i) for e, row in enumerate(rows) for i, bit in enumerate(row) if not bit]
    assert graph.num_reused == len(reused)
    assert graph.removed_fraction == len(reused) / (4 * len(routed))
    assert graph.removed_fraction_overall == len(reused) / 36
    attention = [i for _, i in reused if i % 2 == 0]
    assert graph.removed_fraction_of("attn") == len(attention) / (2 * len(routed))
    assert graph.removed_fraction_of("mlp") == (len(reused) - len(attention)) / (2 * len(routed))
    assert graph.statistics["removed_fraction"] == round(graph.removed_fraction, 6)
    assert graph.statistics["macs_speed_up"] == 1.25


def test_nothing_routed_removes_nothing():
    graph = make(rows=bits(["1111"] * 5), routed=None)
    assert (graph.routed, graph.removed_fraction, graph.removed_fraction_overall) == ((), 0.0, 0.0)
    assert graph.peak_kept == 0


@pytest.mark.parametrize("seed", range(5))
def test_keep_holds_every_output_until_its_last_reader_and_no_longer(random_rows, seed):
    """A cache that obeys `keep` never misses, and misses as soon as any one output is dropped earlier."""
    rows = random_rows(8, 4, seed=seed, fresh=0.4)
    graph = make(rows=rows, timesteps=range(8, 0, -1), routed=None)

    def served(keep):
        held, most = set(), 0
        for row, kept in zip(rows, keep, strict=True):
            if any(not bit and i not in held for i, bit in enumerate(row)):
                return None
            held = {i for i in range(4) if kept[i] and (row[i] or i in held)}
            most = max(most, len(held))
        return most

    assert served(graph.keep) == graph.peak_kept
    assert not any(graph.keep[-1])
    for e, kept in enumerate(graph.keep):
        for i in np.flatnonzero(kept):
            less = [list(row) for row in graph.keep]
            less[e][i] = False
            assert served(less) is None


def test_summary_says_what_is_removed():
    text = make().summary()
    assert "cache graph for dit_test: ddim, 5 evaluations, guidance dit 1.5" in text
    assert "7 of 20 layers reused: 58.33 % of the 3 routed evaluations" in text
    assert "35.00 % of all" in text
    lines = text.splitlines()[-5:]
    assert [line.split()[3] for line in lines] == [row.replace("1", "#").replace("0", ".") for row in ROWS]
    assert [line.split()[4] for line in lines] == ["full", "routed", "full", "routed", "routed"]
    assert "any guidance" in make(cfg_scale=None).summary()
    count = make().num_evaluations
    told = make(measured={WORTH: count / 2, ERROR: 0.00123, SPREAD: 1e-4}, provenance=made_by("best", {})).summary()
    assert f"{count / 2:.4g} of {count} evaluations' worth of MACs (2.00 x); expected squared error per pixel" in told
    assert "0.00123 \u00b1 0.0001; made by best" in told
