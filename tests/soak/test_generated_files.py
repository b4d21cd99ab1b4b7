"""Files that hypothesis makes and changes: schema and loader agree in both directions, what loads is what it says."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from generated import changes, contents_of_graphs, cuts, holds, of_schema
from hypothesis import strategies as st
from mutations import unsealed, verdict
from safetensors import safe_open
from safetensors.torch import save
from test_files import MANIFESTS, whole_checkpoint

import l2c
from l2c.calibration.grid import Grid
from l2c.calibration.measurements import Measurements
from l2c.graph.cache_graph import CacheGraph
from l2c.policies.context import PolicyContext
from l2c.training.checkpoints import WholeCheckpoints, check_checkpoint

SCHEMA = json.loads((Path(l2c.__file__).parent / "graph" / "cache_graph.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# What several fields say together, which a schema cannot check.
RELATIONS = re.compile(
    r"row \d+ has|first row reuses|timesteps must|rows but|sampler.num_evaluations is|reuse has|slopes has"
    r"|finite slopes|cannot be routed|not among the routed|weights has|weights|field digest|idle|control"
    r"|evaluations_worth_of_macs must be a finite number in"
)


def as_strict_json(content):
    """Return a content as a reader of strict JSON has it, or None where it says no number (NaN, infinity)."""
    try:
        return json.loads(json.dumps(content, allow_nan=False))
    except ValueError:
        return None


def agree(content):
    """Check that loader and schema say the same of a content, but for what fields say together; return the graph."""
    graph, said = verdict(lambda: CacheGraph.from_json(json.dumps(content)))
    strict = as_strict_json(content)
    valid = strict is not None and VALIDATOR.is_valid(strict)
    assert valid or graph is None, content
    assert not valid or graph is not None or RELATIONS.search(said), (said, content)
    if graph is not None:
        assert CacheGraph.from_json(graph.to_json()) == graph
        assert VALIDATOR.is_valid(json.loads(graph.to_json()))
        assert repr(graph).isprintable()
    return graph


def test_whole_graphs_are_valid_load_and_stay_the_same(times):
    def check(content):
        graph = agree(content)
        assert graph is not None, CacheGraph.from_json(json.dumps(content))
        said = json.loads(graph.to_json())
        for name in ("rows", "model", "sampler", "provenance"):
            assert said[name] == content[name], name

    holds(check, contents_of_graphs(), count=times(40, 10_000))


def test_changed_graphs_load_where_the_schema_allows_it(times, counted):
    loaded = []
    holds(lambda content: loaded.append(agree(content)), changes(contents_of_graphs()), count=times(80, 10_000))
    counted(tried=len(loaded), loaded=sum(graph is not None for graph in loaded))
    assert None in loaded
    assert any(graph is not None for graph in loaded)


def test_what_the_schema_allows_is_refused_for_a_relation_of_fields_alone(times, counted):
    loaded = []
    holds(lambda content: loaded.append(agree(content)), of_schema(SCHEMA), count=times(40, 10_000))
    counted(tried=len(loaded), loaded=sum(graph is not None for graph in loaded))


def test_bytes_of_a_sealed_graph(times):
    rows = ((True, True), (False, True))
    kept = CacheGraph(rows=rows, layers=("a", "b"), timesteps=(9.0, 0.0), model="m", solver="ddim")

    def check(content):
        found, _ = verdict(lambda: CacheGraph.from_json(content.decode("utf-8", "surrogateescape")))
        assert found in (None, kept)

    holds(check, cuts(kept.to_json().encode()), count=times(60, 10_000))


@pytest.mark.parametrize("kind", MANIFESTS)
def test_generated_manifests(kind, tmp_path, times, counted):
    manifest, read = MANIFESTS[kind], []
    manifest.save(tmp_path)
    path = tmp_path / manifest.FILE
    whole = path.read_bytes()

    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        found, _ = verdict(lambda: type(manifest).load(tmp_path))
        read.append(found)
        if found is None:
            return
        assert found == manifest or not isinstance(content, bytes)
        assert min(*found.shape, found.num_images, found.shard_size) >= 1
        verdict(lambda: found.missing(tmp_path))
        found.save(tmp_path)
        assert type(manifest).load(tmp_path) == found

    holds(check, st.one_of(changes(unsealed(json.loads(whole))), cuts(whole)), count=times(80, 10_000))
    counted(tried=len(read), read=sum(found is not None for found in read))


def test_generated_calibrations(make_dit, tmp_path, times, counted):
    net, read = make_dit(), []
    sampler = l2c.Sampler(net, solver="ddim", num_evaluations=4)
    context = PolicyContext.of(sampler)
    tensors = {"layer_change": torch.rand(2, 4, net.num_layers)}
    path = tmp_path / "c.safetensors"
    Measurements(tensors, context.blank.binding, {"seed": 0}, cost=context.cost).save(path)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        head = unsealed(json.loads(file.metadata()["l2c"]))

    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else save(tensors, {"l2c": json.dumps(content)}))
        found, _ = verdict(lambda: Measurements.load(path))
        read.append(found)
        if found is not None and isinstance(content, bytes):
            found.save(path)
            assert path.read_bytes() == whole
        elif found is not None:
            verdict(lambda: PolicyContext.of(sampler, found))

    holds(check, st.one_of(changes(head), cuts(whole)), count=times(40, 10_000))
    counted(tried=len(read), read=sum(found is not None for found in read))


SCALES = (1e25, -1e25, 1e12, 1e-30, 0.0, math.nan, math.inf)
CUTS = (slice(1, None), slice(0, 1), slice(0, 0))


@st.composite
def changed_tensors(draw, tensors):
    """Return tensors of which one or two are left out, cut, scaled, of another type or in the place of another."""
    changed = dict(tensors)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(changed)))
        act, value = draw(st.sampled_from(("drop", "cut", "scale", "type", "name"))), changed[name]
        if act == "drop" and len(changed) > 1:
            del changed[name]
        elif act == "cut" and value.ndim == 4:
            changed[name] = value.movedim(draw(st.integers(0, 3)), 0)[draw(st.sampled_from(CUTS))].contiguous()
        elif act == "scale":
            changed[name] = value * draw(st.sampled_from(SCALES))
        elif act == "type":
            changed[name] = value.to(draw(st.sampled_from((torch.bfloat16, torch.float16, torch.int64, torch.bool))))
        elif act == "name":
            changed[draw(st.sampled_from((*tensors, "other")))] = value.clone()
    return changed


def test_generated_calibrations_make_graphs_or_are_refused(make_dit, tmp_path, times, counted):
    """What loads makes graphs at its own times and at others, with finite errors or none, or says why not."""
    net, made, draws = make_dit(depth=1), [], torch.Generator().manual_seed(0)
    solver = l2c.Sampler(net, solver="ddim", num_evaluations=6).solver
    context = PolicyContext.of(l2c.Sampler(net, solver=solver))
    shapes = {
        f"{prefix}responses{end}": (6, width, ages, 4)
        for prefix, width in (("", net.num_layers), ("output_", 1))
        for end, ages in (("", 5), ("_ahead", 3))
    }
    tensors = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    correction = {"num_evaluations": 6, "share": 0.5, "predicted": 1e-3, "true": 2e-3}
    calibration = l2c.Calibration(
        tensors,
        context.blank.binding,
        {"seed": 0, "num_trajectories": 2, "batch_size": 1, "measure": ["responses"], "responses": {"num_probes": 2}},
        grid=Grid.of(solver),
        schedule=solver.schedule,
        cost=context.cost,
        corrections=(correction, {**correction, "num_evaluations": 12, "share": 0.4}),
        output_corrections=(correction,),
    )
    path = tmp_path / "c.safetensors"
    calibration.save(path)
    with safe_open(path, framework="pt") as file:
        head = unsealed(json.loads(file.metadata()["l2c"]))

    def check(changed, found_tensors):
        path.write_bytes(save(found_tensors, {"l2c": json.dumps(changed)}))
        found, _ = verdict(lambda: l2c.Calibration.load(path))
        made.append(0)
        for num_steps in (None, 9) if found is not None else ():
            graph, _ = verdict(lambda num_steps=num_steps: found.graph(0.6, num_steps=num_steps))
            made[-1] += graph is not None
            expected = None if graph is None else (graph.measured or {}).get("expected_mse")  # None: not known
            assert expected is None or math.isfinite(expected)

    holds(check, changes(head), st.just(tensors), count=times(40, 10_000))
    holds(check, st.just(head), changed_tensors(tensors), count=times(40, 10_000))
    counted(tried=len(made), loaded=sum(map(bool, made)))
    assert 0 in made
    assert 2 in made


def test_generated_checkpoints(tmp_path, times, counted):
    read, (weights, content) = [], whole_checkpoint()
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content, path)
    whole = path.read_bytes()
    check_checkpoint(path, "net.", weights, settings={"seed": 0}, max_steps=9)
    tensors = {name: content.pop(name) for name in ("state_dict", "optimizer_states")}

    def check(changed):
        if isinstance(changed, bytes):
            path.write_bytes(changed)
        else:  # with a digest that is right
            WholeCheckpoints().save_checkpoint({**changed, **tensors}, path)
        said = verdict(lambda: check_checkpoint(path, "net.", weights, settings={"seed": 0}, max_steps=9))[1]
        read.append(said is None)
        if said is None and isinstance(changed, bytes):
            assert repr(torch.load(path, weights_only=True)) == repr(torch.load(io.BytesIO(whole), weights_only=True))
        elif said is None:
            kept = torch.load(path, weights_only=True)
            assert kept["l2c_run"]["settings"] == {"seed": 0}
            assert 0 <= kept["global_step"] <= 9

    holds(check, st.one_of(changes(content), cuts(whole)), count=times(40, 10_000))
    counted(tried=len(read), read=sum(read))
