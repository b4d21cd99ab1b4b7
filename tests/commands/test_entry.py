"""The entries as a user calls them: good runs, and bad input in one sentence with exit code 1."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TINY = ["model=dit_digits", "solver.num_evaluations=4", "data.batch_size=4", "trainer.max_steps=4"]


@pytest.fixture(scope="module")
def run(call, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    result = call("train_router.py", *TINY, f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    assert str(folder / "cache_graph.json") in result.stdout
    return folder


def test_train_then_evaluate_then_sample(call, run, tmp_path):
    report = tmp_path / "report"
    result = call(
        "scripts/evaluate.py",
        f"graph={run / 'cache_graph.json'}",
        "num_images=8",
        "random_draws=2",
        "timing_batch=2",
        "timing_repetitions=1",
        f"hydra.run.dir={report}",
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in report.iterdir()} == {
        "report.md",
        "report.html",
        "results.json",
        "samples.png",
        "graph.png",
    }
    methods = [row["method"] for row in json.loads((report / "results.json").read_text())["results"]]
    assert methods == ["uncached", "l2c", "fewer steps", "random layers"]
    assert all(f"| {method}" in result.stdout for method in methods)

    folder = tmp_path / "samples"
    result = call("scripts/sample.py", f"graph={run / 'cache_graph.json'}", "labels=[3,7]", f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    samples = load_file(folder / "samples.safetensors")
    assert samples["images"].shape == (2, 1, 8, 8)
    assert torch.equal(samples["labels"], torch.tensor([3, 7]))
    assert (folder / "samples.png").stat().st_size > 0


def test_missing_weights_say_where_from_and_what_else(call, refused, tmp_path):
    sentence = refused(call("train_router.py", "model=dit_xl2", f"hydra.run.dir={tmp_path / 'run'}"))
    for part in (
        "DiT-XL-2-256x256.pt",
        "https://dl.fbaipublicfiles.com/DiT/models/",
        "model.checkpoint=PATH",
        "random",
    ):
        assert part in sentence
    assert not (tmp_path / "run").exists()


def test_unknown_model_names_the_near_ones(call, refused):
    assert "did you mean dit_xl2" in refused(call("train_router.py", "model=dit_xl2_"))


@pytest.mark.parametrize(
    ("command", "override", "sentence"),
    [
        ("train_router.py", "router.penaltyy=1", "unknown setting router.penaltyy; did you mean router.penalty"),
        ("train_router.py", "routr.penalty=1", "unknown setting routr; did you mean router"),
        ("scripts/sample.py", "num_imges=3", "unknown setting num_imges; did you mean num_images"),
        ("scripts/sample.py", "+num_imges=3", "unknown setting num_imges; did you mean num_images"),
        ("scripts/sample.py", "solver.cfg_scale=3", "no solver is chosen yet; say solver=NAME"),
        ("scripts/make_graph.py", "policy.routde=all", "routde"),
        ("scripts/sample.py", "router=l2c", "unknown setting router; did you mean solver"),
        ("train_router.py", "+foo=1", "unknown setting foo; known are pipeline, prompts, seed"),
        ("scripts/make_graph.py", "statistics=s.safetensors", "no statistics any more: it is called calibration now"),
        ("scripts/compare.py", "methods.mine={}", "use +methods.mine"),
    ],
)
def test_unknown_settings_name_near_ones(call, refused, command, override, sentence):
    refusal = refused(call(command, override))
    assert sentence in refusal
    assert ("+" in refusal) == ("+" in sentence)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("methods=[gram]", "methods holds settings by name, got [gram]; say methods.NAME=VALUE"),
        ("solver=5", "a group takes the name of one of its choices"),
        ("solver=[1]", "a group takes the name of one of its choices"),
        ("budgets=[", "cannot read 'budgets=[': say key=value; a list is [a,b]"),
        ("budgets", "cannot read 'budgets': say key=value"),
    ],
)
def test_what_hydra_cannot_read_is_explained(call, refused, override, sentence):
    assert sentence in refused(call("scripts/compare.py", override))


def test_folder_that_cannot_be_written(call, refused):
    assert "/dev/null/run" in refused(call("train_router.py", *TINY, "hydra.run.dir=/dev/null/run"))


def test_broken_graph_and_label_out_of_range(call, refused, run, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text((run / "cache_graph.json").read_text()[:200])
    folder = tmp_path / "out"
    sentence = refused(call("scripts/sample.py", f"graph={broken}", f"hydra.run.dir={folder}"))
    assert "not valid JSON" in sentence
    sentence = refused(call("scripts/sample.py", "labels=[3,10]", f"hydra.run.dir={folder}"))
    assert "label 10 is out of range" in sentence
    assert not folder.exists()


def test_graph_of_another_backbone(call, refused, run, tmp_path):
    sentence = refused(
        call(
            "scripts/sample.py",
            f"graph={run / 'cache_graph.json'}",
            "model=uvit_digits",
            f"hydra.run.dir={tmp_path}/o",
        )
    )
    assert "the graph was made for dit_digits" in sentence


@pytest.mark.parametrize("entry", ["train_router.py", "scripts/evaluate.py", "scripts/sample.py"])
def test_help_shows_commands(call, entry):
    result = call(entry, "--help")
    assert result.returncode == 0
    assert f"python {entry}" in result.stdout
    assert "Settings" in result.stdout


def test_sample_takes_another_solver_and_precision(call, tmp_path):
    """A group of its own: a plain key of its name would shut the group out."""
    folder = tmp_path / "drawn"
    result = call(
        "scripts/sample.py",
        "model=dit_digits",
        "solver=ddpm",
        "num_evaluations=4",
        "num_images=2",
        "precision=bf16",
        f"hydra.run.dir={folder}",
    )
    assert result.returncode == 0, result.stderr
    images = load_file(folder / "samples.safetensors")["images"]
    assert images.shape == (2, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
