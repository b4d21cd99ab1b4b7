"""Comparisons: what budgets mean to policies."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from l2c.commands.compare import budgets_of, method_names
from l2c.evaluation.comparison import Comparison, fewer_evaluations
from l2c.evaluation.comparison_folder import ComparisonFolder
from l2c.evaluation.comparison_settings import ComparisonSettings
from l2c.io.digests import sealed
from l2c.policies.budget import evaluations_worth
from l2c.report.method_table import Cell
from l2c.sampling.solver_settings import SolverSettings

METHODS = {"late_first": {"routed": "all"}, "few": {"policy": "random", "routed": "alternate"}}


@pytest.fixture
def comparison(make_dit, tmp_path):
    settings = ComparisonSettings(methods={k: dict(v) for k, v in METHODS.items()}, num_images=2, num_seeds=1)
    return Comparison(make_dit(), SolverSettings(name="ddim", num_evaluations=8), settings, tmp_path)


def test_a_budget_below_one_evaluation_is_no_share(comparison):
    cost = comparison.context.cost
    all_but_first = range(1, 8)
    least = comparison.context.least(all_but_first)
    worth = evaluations_worth(f"{8 / 0.9}x", 8)
    assert worth == pytest.approx(0.9)
    assert least > worth
    assert [draw.sampler() for draw in comparison.draws("late_first", worth)] == [None]
    (draw,) = comparison.draws("late_first", evaluations_worth("2x", 8))
    assert cost.evaluations_worth(draw.sampler().graph) == pytest.approx(4, abs=0.2)


def test_only_budgets_out_of_reach_leave_a_method_out(comparison):
    assert comparison.draws("few", 2.0)[0].sampler() is None
    comparison.asked.methods["few"]["routed"] = "out of reach"
    with pytest.raises(ValueError, match="routed must be"):
        comparison.draws("few", 2.0)[0].sampler()


def test_noise_of_a_stochastic_solver_follows_the_seed(make_dit, tmp_path):
    images = {}
    for seed in (1000, 1001):
        settings = ComparisonSettings(methods={}, num_images=2, seed=seed)
        solver = SolverSettings(name="ddpm", num_evaluations=4)
        comparison = Comparison(make_dit(), solver, settings, tmp_path)
        images[seed] = comparison.images(comparison.uncached)
        drawn = comparison.uncached.sample(comparison.labels, noise=comparison.noise, seed=seed)
        torch.testing.assert_close(images[seed], drawn)
    assert not torch.equal(*images.values())


def test_another_solver_keeps_the_guidance_and_leaves_the_options(make_dit, tmp_path):
    solver = SolverSettings(name="ddim", num_evaluations=8, cfg_scale=2.5, options={"eta": 0.5})
    comparison = Comparison(make_dit(), solver, ComparisonSettings(methods={}, num_images=2), tmp_path)
    other = comparison.uncached_with("dpm_solver_2m", 5)
    assert (other.solver.name, other.solver.num_evaluations, other.guidance.scale) == ("dpm_solver_2m", 5, 2.5)
    assert "eta" not in other.solver.options


@pytest.mark.parametrize(
    ("solver", "worth", "count"),
    [("ddim", 12.5, 12), ("ddim", 13.5, 13), ("ddim", 12.6, 13), ("dpm_solver_2s", 7, 6), ("dpm_solver_2s", 7.1, 8)],
)
def test_a_budget_between_two_numbers_takes_the_smaller_one(solver, worth, count):
    assert fewer_evaluations(solver, worth) == count


@pytest.fixture
def compared(make_dit, tmp_path):
    """Return a function that measures a method in one folder; it returns its cells and what the folder knows."""
    backbone = make_dit()

    def run(options, worth=4.0, **settings):
        how = {"num_images": 2, "timing_batch": 1, "timing_repetitions": 1, **settings}
        asked = ComparisonSettings(methods={"mine": options}, **how)
        comparison = Comparison(backbone, SolverSettings(name="ddim", num_evaluations=8), asked, tmp_path)
        comparison.kept.claim(comparison.settings)
        (draw,) = comparison.draws("mine", worth)
        return comparison.measure("mine", worth, 0, draw), comparison.kept

    return run


def file_of(tmp_path):
    return tmp_path / "cells" / "mine-4-0.json"


INTERVAL = {"policy": "interval", "first": 1}


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({"policy": "late_first"}, {}, "policy is interval there, late_first here"),
        ({"policy": "interval", "first": 2}, {}, "first is 1 there, 2 here"),
        ({"policy": "fewer_steps"}, {}, "policy is interval there, fewer_steps here"),
        (INTERVAL, {"timing_batch": 2}, "timing_batch is 1 there, 2 here"),
        (INTERVAL, {"timing_repetitions": 2}, "timing_repetitions is 1 there, 2 here"),
        (INTERVAL, {"worth": 4.0000001}, "budget is 4.0 there, 4.0000001 here"),
    ],
)
def test_a_cell_that_was_made_otherwise_is_measured_again(compared, tmp_path, capsys, options, settings, said):
    (before,), _ = compared(INTERVAL)
    assert (tmp_path / "graphs" / "mine-4.json").is_file()
    assert compared(INTERVAL)[0] == [before]
    assert "measured again" not in capsys.readouterr().out
    compared(options, **settings)
    assert f"is measured again: {said}" in capsys.readouterr().out
    kept = json.loads(file_of(tmp_path).read_text())
    assert kept["origin"]["policy"] == options["policy"]
    has_graph = options["policy"] != "fewer_steps"
    assert (tmp_path / "graphs" / "mine-4.json").is_file() == has_graph, "the graph of another method would be shown"


def test_a_changed_default_is_noticed(compared, tmp_path, monkeypatch, capsys):
    from l2c.policies.registry import POLICIES

    options = {"policy": "interval"}
    compared(options)
    assert json.loads(file_of(tmp_path).read_text())["origin"]["reuse"] == "hold"

    def interval(context, n=2, *, budget=None, reuse="linear"):
        return POLICIES["late_first"](context, budget=budget)

    monkeypatch.setitem(POLICIES, "interval", interval)
    compared(options)
    assert "is measured again: reuse is hold there, linear here" in capsys.readouterr().out


def test_cells_of_another_version_are_refused_or_named(compared, tmp_path, monkeypatch):
    (before,), _ = compared(INTERVAL)
    monkeypatch.setattr("l2c.evaluation.comparison_folder.code_version", lambda: "9.9, code abc")
    with pytest.raises(
        ValueError, match=r"holds cells that l2c 0.* has measured, but this is 9.9, code abc.*any_vers"
    ):
        compared(INTERVAL)
    cells, kept = compared(INTERVAL, any_version=True)
    assert cells == [before]
    assert kept.versions.startswith(" The cells were measured by l2c 0.")
    file_of(tmp_path).unlink()
    (tmp_path / "settings.json").unlink()
    compared(INTERVAL)
    assert compared(INTERVAL)[1].versions == ""
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"l2c 9.9, code abc has measured"):
        compared(INTERVAL)


def test_the_machine_of_each_cell_is_named(compared, monkeypatch):
    compared(INTERVAL)
    monkeypatch.setattr("l2c.evaluation.comparison_folder.machine", lambda: "an abacus")
    _, kept = compared(INTERVAL)
    assert "abacus" not in kept.machines
    kept.keep("other", {}, [])
    assert kept.machines.endswith("; an abacus")


@pytest.mark.parametrize(
    "damage",
    [
        lambda cell: "{",
        lambda cell: "[]",
        lambda cell: json.dumps({**cell, "cells": [{**cell["cells"][0], "mse": "1"}]}),
        lambda cell: json.dumps({**cell, "cells": [{**cell["cells"][0], "mse": float("nan")}]}),
        lambda cell: json.dumps({**cell, "cells": [{**cell["cells"][0], "seconds": 0}]}),
        lambda cell: json.dumps({**cell, "cells": [{**cell["cells"][0], "method": "other"}]}),
        lambda cell: json.dumps({**cell, "cells": [{}]}),
        lambda cell: json.dumps({**cell, "cells": 3}),
        lambda cell: json.dumps({**cell, "origin": []}),
        lambda cell: json.dumps({"origin": cell["origin"], "cells": cell["cells"]}),
    ],
)
def test_a_damaged_cell_is_measured_again(tmp_path, damage):
    kept, origin = ComparisonFolder(tmp_path), {"method": "mine", "first": 1}
    cells = [Cell("mine", 4.0, 0, 4.0, 0.1, 0.01, 0.2, 0.5, 1.0)]
    kept.keep("mine-4-0", origin, cells)
    assert kept.recall("mine-4-0", origin) == cells
    file_of(tmp_path).write_text(damage(json.loads(file_of(tmp_path).read_text())))
    assert kept.recall("mine-4-0", origin) == "mine-4-0.json is damaged or of an earlier version"
    assert kept.recall("nothing", origin) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda images, texts: (images, {"targets": texts["targets"].replace("1000", "7")}),
            "seed is 7 th",
        ),
        (lambda images, texts: (images + 1, texts), "holds other images than were drawn into it"),
        (lambda images, texts: (images, {}), "does not say of which settings its images are; move it away"),
        (lambda images, texts: (images, {"targets": "[]"}), "does not say of which settings"),
    ],
)
def test_targets_of_others_are_refused(compared, tmp_path, change, said):
    compared(INTERVAL)
    path = tmp_path / "targets.safetensors"
    with safe_open(path, framework="pt") as file:
        images, texts = change(file.get_tensor("images"), file.metadata())
    save_file({"images": images}, path, texts)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        compared(INTERVAL)
    assert path.read_bytes() == before


def test_a_cell_that_was_measured_to_other_images_is_measured_again(compared, tmp_path, capsys):
    (before,), _ = compared(INTERVAL)
    foreign = file_of(tmp_path).read_text()
    path = tmp_path / "targets.safetensors"
    path.unlink()
    file_of(tmp_path).write_text(
        json.dumps(
            sealed({**json.loads(foreign), "origin": {**json.loads(foreign)["origin"], "targets": "sha256:0"}})
        )
    )
    (after,), _ = compared(INTERVAL)
    assert "mine at 4 is measured again: targets is sha256:0 there" in capsys.readouterr().out
    assert after.mse == before.mse
    edited = json.loads(file_of(tmp_path).read_text())
    edited["cells"][0]["mse"] /= 2
    file_of(tmp_path).write_text(json.dumps(edited))
    assert compared(INTERVAL)[0][0].mse == before.mse
    assert "mine-4-0.json is damaged or of an earlier version" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["samples/mine-4.safetensors", "graphs/mine-4.json"])
def test_drawings_that_are_not_of_a_cell_are_drawn_again(compared, tmp_path, capsys, file):
    compared(INTERVAL)
    drawn = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(drawn + b" ")
    compared(INTERVAL)
    assert f"is measured again: {file} is not what was drawn of it" in capsys.readouterr().out
    assert (tmp_path / file).read_bytes() == drawn
    (tmp_path / "cells" / "notes.json").write_text('{"of": "others"}')
    (tmp_path / file).unlink()
    compared(INTERVAL)
    assert "measured again" not in capsys.readouterr().out, "what is missing is left out of the report"


@pytest.mark.parametrize("content", ["[]", "{}", '{"settings": 3}'])
def test_a_record_without_settings_is_refused(compared, tmp_path, content):
    compared(INTERVAL)
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"holds a comparison of which settings\.json does not say the settings"):
        compared(INTERVAL)


def test_another_comparison_in_the_folder_names_what_differs(compared):
    compared(INTERVAL)
    with pytest.raises(ValueError, match="with other settings: num_images is 2 there, 3 here, seed is 1000 there, 5"):
        compared(INTERVAL, num_images=3, seed=5)


def test_what_would_count_twice_or_share_files_is_refused():
    settings = {"budgets": [0.5, "2x"], "solver": {"num_evaluations": 8}, "methods": {"a b": {}, "a_b": {}}}
    cfg = OmegaConf.create({**settings, "graphs": None})
    with pytest.raises(ValueError, match=r"budgets 0\.5 and 2x both cost 4 evaluations; leave one of them out"):
        budgets_of(cfg)
    with pytest.raises(ValueError, match="budgets: 25 is 25 evaluations' worth of MACs, more than the 8 uncached"):
        budgets_of(OmegaConf.create({**settings, "budgets": [25]}))
    with pytest.raises(ValueError, match="'a b' and 'a_b' would share their files"):
        method_names(cfg)
    apart = OmegaConf.create({**settings, "budgets": [0.5, 3], "methods": {"a b": {}, "ab": {}}, "graphs": None})
    assert (budgets_of(apart), method_names(apart)) == ([4, 3], ["a b", "ab"])
