"""Files of strangers: thousands of mutated graphs, on which schema and loader agree; bounds in size and time."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import jsonschema
import pytest
from mutations import NUMBERS, OTHERS, TEXTS, damaged, mutated

import l2c
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.checks import MAX_EVALUATIONS, MAX_LAYERS, MAX_OPTION, MAX_SCALE, MAX_TIMESTEP
from l2c.graph.file import FIELDS, OF_GUIDANCE, OF_MODEL, OF_SAMPLER
from l2c.graph.predictor import MAX_SLOPE, REUSES
from l2c.graph.statistics import ERROR, MACS, SPEED_UP, SPREAD, UNKNOWN, WORTH

SCHEMA = json.loads((Path(l2c.__file__).parent / "graph" / "cache_graph.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
NUM_MUTATIONS = 2400
BASE = CacheGraph(
    rows=((True, True), (True, True), (False, True), (False, False), (True, False)),
    layers=("blocks.0.attn", "blocks.0.mlp"),
    timesteps=(999.0, 750.0, 500.0, 250.0, 0.0),
    model="m",
    solver="ddim",
    reuse=("hold", "hold", "linear", "fitted", "hold"),
    slopes=((), (), (), (0.5, -0.25), ()),
    fingerprint="sha256:" + 64 * "0",
    solver_options={"eta": 0.0},
    guidance="dit",
    cfg_scale=1.5,
    provenance={"method": "x", "list": [1, {"a": None}]},
    measured={"mse": 0.5, MACS: 100, WORTH: 4.0, SPEED_UP: 1.25, ERROR: 1e-3, SPREAD: None, UNKNOWN: "why"},
)
# What several fields say together, which a schema cannot check.
RELATIONS = re.compile(
    r"row \d+ has|first row reuses|timesteps must|rows but|sampler.num_evaluations is|reuse has|slopes has"
    rf"|finite slopes|cannot be routed|not among the routed|{WORTH} must be a finite number in"
)
VALUES = [
    *(*NUMBERS, *TEXTS, *OTHERS),
    *("11", "01", "1x", "hold", "linear", "fitted", "cubic", "dit", "ddim", "XScheduler", "dimm", "11\n"),
    *("sha256:" + 63 * "a", {"eta": 0.0}, ["11"] * 5, [2.0, 3, 4]),
    {"file": "c.safetensors", "fingerprint": "sha256:" + 64 * "a"},
    {"mode": "uvit", "scale": None},
]
NAMES = ("new", "routed", "slopes", "reuse", "correction", "name", "eta")


def unsealed(graph):
    """Return a file's content without its digest, for which every change would be refused."""
    return {name: value for name, value in json.loads(graph.to_json()).items() if name != "digest"}


@pytest.mark.parametrize("seed", range(4))
def test_schema_and_loader_agree_on_mutated_graphs(seed):
    """What the schema refuses is refused; what is refused beyond that is a relation of several fields."""
    source, content = random.Random(seed), unsealed(BASE)
    verdicts = {"both": 0, "loaded": 0, "relation": 0}
    for _ in range(NUM_MUTATIONS // 4):
        changed = mutated(content, source, VALUES, NAMES)
        valid = VALIDATOR.is_valid(changed)
        try:
            graph = CacheGraph.from_json(json.dumps(changed))
        except ValueError as error:
            message = str(error)
            assert message.isprintable(), changed
            assert len(message) < 600
            assert not valid or RELATIONS.search(message), (message, changed)
            verdicts["relation" if valid else "both"] += 1
        else:
            assert valid, changed
            again = CacheGraph.from_json(graph.to_json())  # what loads can be saved, and is the same then
            assert again == graph
            assert VALIDATOR.is_valid(json.loads(graph.to_json()))
            assert repr(graph).isprintable()
            assert all(line.isprintable() for line in graph.summary().splitlines())
            verdicts["loaded"] += 1
    assert min(verdicts.values()) > 20, verdicts


def test_mutated_bytes_are_loaded_or_refused_in_a_sentence(tmp_path):
    source, whole = random.Random(0), BASE.to_json().encode()
    path = tmp_path / "g.json"
    for _ in range(1000):
        path.write_bytes(damaged(whole, source))
        message, graph = "", None
        try:
            graph = CacheGraph.load(path)
        except ValueError as error:
            message = str(error)
        assert message.isprintable()
        assert graph in (None, BASE)


def test_every_change_of_a_sealed_file_is_refused():
    """A digit that flips, and still is a valid graph; spaces and the order of keys do not count."""
    source, content, refusals = random.Random(0), json.loads(BASE.to_json()), 0
    for _ in range(300):
        changed = mutated(content, source, VALUES, NAMES)
        if changed == content or "digest" not in changed:
            continue
        with pytest.raises(ValueError) as caught:
            CacheGraph.from_json(json.dumps(changed))
        refusals += "not what its field digest says, so that it was damaged or edited; copy it" in str(caught.value)
    assert refusals > 20
    turned = dict(reversed(content.items()))
    assert CacheGraph.from_json(json.dumps(turned, indent=3)) == BASE
    edited = {**unsealed(BASE), "rows": ["11", "11", "01", "00", "01"]}
    graph = CacheGraph.from_json(json.dumps(edited))
    assert json.loads(graph.to_json())["digest"] != content["digest"]


def test_schema_and_code_name_the_same_limits_and_fields():
    of = SCHEMA["properties"]
    sampler, model = of["sampler"]["properties"], of["model"]["properties"]
    assert set(of) == FIELDS
    assert set(model) == set(OF_MODEL)
    assert set(sampler) == set(OF_SAMPLER)
    assert set(sampler["guidance"]["properties"]) == set(OF_GUIDANCE)
    assert of["rows"]["maxItems"] == sampler["timesteps"]["maxItems"] == MAX_EVALUATIONS
    assert model["layers"]["maxItems"] == MAX_LAYERS
    assert sampler["guidance"]["properties"]["scale"]["maximum"] == MAX_SCALE
    assert sampler["timesteps"]["items"]["maximum"] == MAX_TIMESTEP
    assert sampler["options"]["additionalProperties"]["maximum"] == MAX_OPTION
    assert of["slopes"]["items"]["items"]["maximum"] == MAX_SLOPE
    assert of["reuse"]["items"]["enum"] == list(REUSES)


# --- text that JSON readers let through ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"version": 1', '"version": 1, "version": 1', "the key 'version' occurs twice"),
        ('"method": "x"', '"method": "x", "method": "y"', "the key 'method' occurs twice"),
        ('"method": "x"', '"a": 1e999', "the number 1e999 is too large"),
        ('"method": "x"', '"a": NaN', "NaN is not a number"),
        ('"method": "x"', '"a": ' + 500 * "9", "is too large for a float"),
        ('"method": "x"', '"a": "\\ud800"', "half of a surrogate pair"),
        ('"method": "x"', '"a": ' + 100_000 * "[", "nested too deeply"),
        ('"name": "m"', '"name": "m", "size": 3', "the field model.size is unknown"),
        ('"mode": "dit"', '"mode": "dit", "\\u001b[31m": 3', r"the field sampler.guidance.\x1b[31m is unknown"),
        ('"eta": 0.0', '"eta": 1e38', "the option eta of the solver must be a finite number"),
        ('"scale": 1.5', '"scale": 1e38', "cfg_scale must be a finite number in [-1000, 1000], got 1e+38"),
        ("0.5,", "1e30,", "needs 2 finite slopes"),
    ],
)
def test_what_json_readers_let_through_is_refused(before, after, says):
    text = BASE.to_json()
    assert before in text
    with pytest.raises(ValueError) as caught:
        CacheGraph.from_json(text.replace(before, after, 1))
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_are_shown_without_their_control_characters():
    graph = BASE.replace(model="\x1b]0;owned\x07\u202e", layers=("a\nb", "c\x9b"))
    for text in (repr(graph), graph.summary().splitlines()[0]):
        assert text.isprintable()
        assert "\\x1b]0;owned" in text
    assert CacheGraph.from_json(graph.to_json()) == graph


def test_repr_is_one_short_line():
    assert repr(BASE) == "<CacheGraph for m: ddim, 5 evaluations x 2 layers, 4 reused>"


def test_layers_of_other_kinds_are_not_called_attention_or_mlp():
    graph = BASE.replace(layers=("blocks.0.att", "blocks.0.mlp"))
    assert re.search(r" \(MLP \d+\.\d\d %, others \d+\.\d\d %\)", graph.summary())
    assert "MLP" not in BASE.replace(layers=("blocks.0.att", "blocks.0.fc")).summary()


def test_times_may_rise():
    rising = BASE.replace(timesteps=(0.0, 0.25, 0.5, 0.75, 1.0))
    assert CacheGraph.from_json(rising.to_json()) == rising
    falling = BASE.replace(timesteps=(1.0, 0.75, 0.5, 0.25, 0.0))
    assert rising.entry_slopes == falling.entry_slopes  # a line is one from either end
    with pytest.raises(ValueError, match=r"must increase from noise to image, got 0.2 after 0.25"):
        BASE.replace(timesteps=(0.0, 0.25, 0.2, 0.75, 1.0))


# --- bounds ---------------------------------------------------------------------------------------------------


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def refused(path, says):
    with pytest.raises(ValueError, match=says):
        CacheGraph.load(path)


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert seconds(lambda path=path: refused(path, "a folder, pipe or device")) < 1


def test_large_files_are_refused_at_once(tmp_path):
    with (tmp_path / "g.json").open("wb") as file:
        file.truncate(2**40)
    assert seconds(lambda: refused(tmp_path / "g.json", "has 1099511627776 bytes, allowed are")) < 1


def test_more_layers_than_any_network_has_are_refused_in_time(tmp_path):
    content = json.loads(BASE.to_json())
    content["rows"] = ["1" * 300_000] * 20
    content["model"]["layers"] = [f"blocks.{i}" for i in range(300_000)]
    content["sampler"] |= {"timesteps": list(range(20, 0, -1)), "num_evaluations": 20}
    del content["reuse"], content["slopes"], content["routed"]
    (tmp_path / "g.json").write_text(json.dumps(content))
    assert seconds(lambda: refused(tmp_path / "g.json", "at most 4096 layers, got 300000")) < 5


def test_counts_are_refused_before_any_layer_is_looked_at(tmp_path):
    content = json.loads(BASE.to_json())
    content["model"]["layers"] = [None] * (MAX_LAYERS + 1)
    (tmp_path / "g.json").write_text(json.dumps(content))
    refused(tmp_path / "g.json", f"at most {MAX_LAYERS} layers, got {MAX_LAYERS + 1}")


def test_time_is_linear_in_unknown_statistics():
    content = unsealed(BASE)
    few, many = (
        json.dumps({**content, "statistics": {f"figure {i}": i for i in range(count)}}) for count in (400, 40_000)
    )
    CacheGraph.from_json(few)
    assert seconds(lambda: CacheGraph.from_json(many)) < 300 * max(seconds(lambda: CacheGraph.from_json(few)), 1e-3)
    assert seconds(lambda: CacheGraph.from_json(many)) < 1


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path):
    for measured in ({"mse": float("inf")}, {"mse": object()}):
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            BASE.replace(measured=measured).save(tmp_path / "g.json")
    assert not list(tmp_path.iterdir())


def test_bundled_graphs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dit_digits_ddim20", "uvit_digits_dpm20"):
        graph = CacheGraph.load(name)
        assert CacheGraph.from_json(graph.to_json()) == graph
        file = Path(l2c.__file__).parents[1] / "checkpoints" / f"{name}.json"
        assert json.loads(graph.to_json()) == json.loads(file.read_text(encoding="utf-8"))
