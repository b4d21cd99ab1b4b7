"""The entries around policies as a user calls them: calibrate, make a graph, compare, and their refusals."""

import shlex

import pytest
from safetensors.torch import save_model

import l2c

SMALL = ["model=dit_digits", "solver.num_evaluations=4"]


@pytest.fixture(scope="module")
def calibration(call, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "s.safetensors"
    sizes = ["num_trajectories=2", "batch_size=2", "responses.num_probes=1", "responses.max_age=3", "true_errors=2"]
    folder = path.parent / "run"
    result = call(
        "scripts/calibrate.py",
        *SMALL,
        *sizes,
        "measure=[changes,responses]",
        f"output={path}",
        f"hydra.run.dir={folder}",
    )
    assert result.returncode == 0, result.stderr
    return path


def test_make_graph_by_a_budget(call, calibration, tmp_path):
    options = ["policy=gram", "budget=0.6", f"calibration={calibration}", f"hydra.run.dir={tmp_path}"]
    result = call("scripts/make_graph.py", *SMALL, *options)
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load(tmp_path / "cache_graph.json")
    assert graph.provenance["method"] == "gram"
    assert graph.statistics["evaluations_worth_of_macs"] == pytest.approx(2.4, abs=0.1)


def test_parts_of_a_calibration_are_joined(call, refused, tmp_path):
    """And the joined one is corrected by true errors on noises that no part was measured on."""
    sampler = l2c.Sampler(l2c.load_backbone("dit_digits"), solver="ddim", num_evaluations=4)
    how = {"num_trajectories": 1, "true_errors": 0, "responses": {"num_probes": 1, "max_age": 3}}
    for first in (0, 1):
        part = l2c.Calibration.measure(sampler, first_trajectory=first, **how)
        part.save(tmp_path / f"part{first}.safetensors")
    options = [*SMALL, f"parts={tmp_path}/part*.safetensors", "batch_size=2", f"hydra.run.dir={tmp_path / 'run'}"]
    result = call("scripts/calibrate.py", *options, "true_errors=2", f"output={tmp_path / 'whole.safetensors'}")
    assert result.returncode == 0, result.stderr
    whole = l2c.Calibration.load(tmp_path / "whole.safetensors")
    assert (whole.settings["first_trajectory"], whole.settings["num_trajectories"]) == (0, 2)
    assert whole.corrections
    assert "policy=best" in result.stdout.partition("next: ")[2]
    unused = refused(
        call("scripts/calibrate.py", *options, "num_trajectories=9", f"output={tmp_path / 'no.safetensors'}")
    )
    assert "so that num_trajectories=9 would do nothing; leave it out" in unused
    twice = f"parts=[{tmp_path}/part0.safetensors,{tmp_path}/whole.safetensors]"
    result = call("scripts/calibrate.py", *options[:-3], twice, f"output={tmp_path / 'twice.safetensors'}")
    assert "trajectory 0 of seed 7 is in two of the calibrations" in refused(result)
    assert not (tmp_path / "twice.safetensors").exists()


def test_next_lines_keep_the_solver_and_the_weights(call, tmp_path):
    weights = tmp_path / "own.safetensors"
    save_model(l2c.load_backbone("dit_digits"), weights)
    same = ["model=dit_digits", f"model.checkpoint={weights}", "solver=ddim", "solver.options={eta: 0.5}"]
    output = f"output={tmp_path / 's.safetensors'}"
    few = ["solver.num_evaluations=4", "num_trajectories=2", "batch_size=2"]
    result = call("scripts/calibrate.py", *same, *few, output, f"hydra.run.dir={tmp_path / 'c'}")
    line = shlex.split(result.stdout.partition("next: ")[2])
    assert line[:2] == ["python", "scripts/make_graph.py"]
    made = call(*line[1:], f"hydra.run.dir={tmp_path / 'g'}")
    assert made.returncode == 0, made.stderr
    graph = l2c.CacheGraph.load(tmp_path / "g" / "cache_graph.json")
    assert (graph.num_evaluations, graph.solver_options) == (4, {"eta": 0.5})
    judge = shlex.split(made.stdout.partition("next: ")[2])
    assert judge[2:] == [f"graph={tmp_path / 'g' / 'cache_graph.json'}", f"checkpoint={weights}"]


def test_compare_writes_reports_and_continues(call, refused, calibration, tmp_path):
    options = [
        f"calibration={calibration}",
        "budgets=[3]",
        "num_images=4",
        "num_seeds=2",
        "timing_batch=2",
        "timing_repetitions=1",
        "methods.best=false",
        f"hydra.run.dir={tmp_path}",
    ]
    result = call("scripts/compare.py", *SMALL, *options)
    assert result.returncode == 0, result.stderr
    names = {"table.md", "table.csv", "pareto.png", "pareto.svg", "report.html", "cells", "graphs", "samples"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    (tmp_path / "cells" / "gram-3-0.json").unlink()
    before = (tmp_path / "cells" / "interval-3-0.json").stat().st_mtime_ns
    assert call("scripts/compare.py", *SMALL, *options).returncode == 0
    assert (tmp_path / "cells" / "gram-3-0.json").is_file()
    assert (tmp_path / "cells" / "interval-3-0.json").stat().st_mtime_ns == before
    other = call("scripts/compare.py", *SMALL, *options, "seed=5")
    assert "holds a comparison with other settings" in refused(other)
    other = call("scripts/compare.py", *SMALL, *options, "only=[gramm]")
    assert "only names 'gramm', which is neither in methods nor in graphs; did you mean gram" in refused(other)


def test_compare_measures_to_the_ode_another_solver_and_dynamic_methods(call, refused, calibration, tmp_path):
    only = "only=[better,fewer_2m,first_block_cache]"
    options = [
        f"calibration={calibration}",
        "budgets=[3]",
        "num_images=4",
        "timing_batch=2",
        "timing_repetitions=1",
        f"hydra.run.dir={tmp_path}",
        "+methods.better={policy: gram, solver: dpm_solver_2m}",
        "+methods.fewer_2m={policy: fewer_steps, solver: dpm_solver_2m}",
        "+methods.first_block_cache={num_trajectories: 4, steps: 3}",
    ]
    without = call("scripts/compare.py", *SMALL, only, *options)
    assert "compare it by the distance to the solution of the ODE: measured_to=ode" in refused(without)
    result = call("scripts/compare.py", *SMALL, only, *options, "measured_to=ode")
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "table.md").read_text()
    assert "solution of the ODE, the images of the same solver with 200 evaluations" in table
    assert all(name in table for name in ("better", "fewer_2m", "first_block_cache"))
    graph = l2c.CacheGraph.load(tmp_path / "graphs" / "better-3.json")
    assert graph.solver == "dpm_solver_2m"
    other = call("scripts/compare.py", *SMALL, only, *options, "measured_to=solution")
    assert "measured_to must be uncached or ode, got 'solution'" in refused(other)


def test_bad_input_ends_in_one_sentence(call, refused, calibration, tmp_path):
    run = f"hydra.run.dir={tmp_path / 'x'}"
    unknown = call("scripts/compare.py", *SMALL, "+methods.smothcache={}", run)
    assert "unknown method 'smothcache'; did you mean smoothcache" in refused(unknown)
    option = call("scripts/compare.py", *SMALL, "methods.best={rounds: 20}", run)
    assert "policy best has no option 'rounds'" in refused(option)
    without = call("scripts/compare.py", *SMALL, "budgets=[3]", run)
    sentence = refused(without)
    assert (
        "no calibration is given; run l2c calibrate measure=[changes,responses] and pass calibration=PATH" in sentence
    )
    assert "or compare the others alone with only=[fewer_steps,interval," in sentence
    other = [
        f"calibration={calibration}",
        "solver.num_evaluations=6",
        "budgets=[3]",
        "num_images=2",
        "only=[gram,smoothcache]",
    ]
    carried = refused(call("scripts/compare.py", "model=dit_digits", *other, run))
    assert carried.startswith("error: smoothcache: the calibration was made for")
    assert "layer_change is known at those alone" in carried
    assert "or compare the others alone with only=[gram]" in carried
    needs = call("scripts/calibrate.py", *SMALL, "policy=gram", "budget=0.5", run)
    assert "policy gram needs responses; say measure=[responses]" in refused(needs)
    by_score = call("scripts/calibrate.py", *SMALL, "policy=top_k", "policy.score=response", "measure=[changes]", run)
    assert "policy top_k needs responses; say measure=[responses]" in refused(by_score)
    same = call("scripts/compare.py", *SMALL, f"calibration={calibration}", "budgets=[3]", "seed=7", run)
    assert "was calibrated on the noises of seed 7, where graphs would be compared" in refused(same)
    other = call("scripts/make_graph.py", "policy=top_k", "budget=0.8", f"calibration={calibration}", run)
    assert "the calibration was made for 4 other evaluations, and layer_change is known at those" in refused(other)
    reach = call("scripts/make_graph.py", *SMALL, "budget=0.1", run)
    assert "the reachable range is" in refused(reach)


def test_a_correction_takes_the_graphs_scale_before_the_published_one(call, refused, monkeypatch, tmp_path):
    made = ["budget=0.7", "solver.cfg_scale=3", f"hydra.run.dir={tmp_path / 'g'}"]
    assert call("scripts/make_graph.py", *SMALL, *made).returncode == 0
    taken = []

    def train(graph, sampler, settings, folder):
        taken.append(sampler.guidance.scale)
        return folder

    monkeypatch.setattr("l2c.commands.train_scale_shift.train_correction", train)
    graph = f"graph={tmp_path / 'g' / 'cache_graph.json'}"
    solver = ["model=dit_digits", "solver=ddim", "solver.num_evaluations=4", f"hydra.run.dir={tmp_path / 'c'}"]
    result = call("scripts/train_scale_shift.py", graph, *solver)
    assert result.returncode == 0, result.stderr
    assert taken == [3.0]
    other = call("scripts/train_scale_shift.py", graph, *solver, "cfg_scale=2")
    assert "was made for cfg_scale 3.0, got 2.0" in refused(other)


def test_scale_shift_is_trained_and_written_beside_the_graph(call, refused, tmp_path):
    assert call("scripts/make_graph.py", *SMALL, "budget=0.7", f"hydra.run.dir={tmp_path / 'g'}").returncode == 0
    graph = f"graph={tmp_path / 'g' / 'cache_graph.json'}"
    settings = ["max_steps=2", "batch_size=2", "accelerator=cpu", f"hydra.run.dir={tmp_path / 'c'}"]
    result = call("scripts/train_scale_shift.py", graph, *settings)
    assert result.returncode == 0, result.stderr
    corrected = l2c.CacheGraph.load(tmp_path / "c" / "cache_graph.json")
    assert corrected.rows == l2c.CacheGraph.load(tmp_path / "g" / "cache_graph.json").rows
    assert corrected.provenance["trained"]["steps"] == 2
    l2c.Sampler(l2c.load_backbone("dit_digits"), graph=corrected)
    again = call("scripts/train_scale_shift.py", f"graph={tmp_path / 'c' / 'cache_graph.json'}", *settings)
    assert "has a correction already; give the graph that it was trained from" in refused(again)
    assert "say graph=PATH" in refused(call("scripts/train_scale_shift.py", f"hydra.run.dir={tmp_path / 'd'}"))
