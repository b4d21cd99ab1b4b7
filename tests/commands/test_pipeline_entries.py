"""The entries on a saved pipeline: calibrate, make, compare, judge and use graphs, train routers, refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from integrations.conftest import PIPELINES

import l2c
from l2c.integrations.diffusers import apply
from l2c.integrations.diffusers.images import PURPOSE
from l2c.io.seeds import torch_generator
from l2c.sampling.sampler import seeded_noise


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    PIPELINES["dit"]().save_pretrained(folder)
    return folder


def options(saved, tmp_path):
    return [
        "backend=diffusers",
        f"pipeline={saved}",
        "solver.num_evaluations=4",
        "solver.cfg_scale=3",
        run_in(tmp_path),
    ]


def run_in(tmp_path):
    return f"hydra.run.dir={tmp_path}"


def pipeline_of(saved):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_calibrate_makes_a_graph_that_the_pipeline_takes(call, saved, tmp_path):
    output = [f"output={tmp_path / 's.safetensors'}", "num_trajectories=2"]
    policy = ["policy=block_caching", "budget=0.6"]
    result = call("scripts/calibrate.py", *options(saved, tmp_path), *policy, *output)
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load(tmp_path / "cache_graph.json")
    assert graph.statistics["evaluations_worth_of_macs"] == pytest.approx(2.4, abs=0.4)
    assert graph.removed_fraction_of("attn") > 0
    pipe = pipeline_of(saved)
    apply(pipe, graph)
    pipe(class_labels=[3], num_inference_steps=4, guidance_scale=3.0, output_type="np")


def test_train_router_on_prompts(call, refused, saved, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3\n7\n")
    train = ["data=prompts", f"prompts={prompts}", "data.batch_size=2", "trainer.max_steps=2", "router.penalty=1.0"]
    result = call("train_router.py", *options(saved, tmp_path), *train)
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load(tmp_path / "cache_graph.json")
    assert (graph.model, graph.solver, graph.cfg_scale) == ("DiTTransformer2DModel", "DDIMScheduler", 3.0)
    apply(pipeline_of(saved), graph)
    prompts.write_text("")
    empty = call("train_router.py", *options(saved, tmp_path), *train)
    assert "prompts.txt is empty; write one prompt" in refused(empty)


@pytest.fixture
def run(call, saved, tmp_path):
    """Run an entry, which must go well; return its folder and what it printed."""

    def entry(name, *arguments, folder="run", steps=()):
        where = tmp_path / folder
        given = ["backend=diffusers", f"pipeline={saved}", *steps, run_in(where)]
        result = call(f"scripts/{name}", *given, *arguments)
        assert result.returncode == 0, result.stderr
        return where, result.stdout

    return entry


STEPS = ["solver.num_evaluations=4", "solver.cfg_scale=3"]


def test_from_calibration_to_images(run, saved, tmp_path):
    """calibrate, make_graph, evaluate and sample, one after the other."""
    file = tmp_path / "s.safetensors"
    small = ["num_trajectories=2", "batch_size=2", "responses.num_probes=1", "responses.max_age=3", "true_errors=2"]
    _, printed = run("calibrate.py", "measure=[changes,responses]", f"output={file}", *small, steps=STEPS)
    assert f"make_graph.py backend=diffusers pipeline={saved}" in printed
    made, _ = run(
        "make_graph.py", "policy=gram", "policy.reuses=[hold]", "budget=0.6", f"calibration={file}", steps=STEPS
    )
    path = made / "cache_graph.json"
    graph = l2c.CacheGraph.load(path)
    assert (graph.provenance["method"], graph.solver, graph.cfg_scale) == ("gram", "DDIMScheduler", 3.0)
    few = ["num_images=2", "batch_size=2", "timing_batch=1", "timing_repetitions=1", "random_draws=1"]
    judged, _ = run("evaluate.py", f"graph={path}", *few, folder="judged")
    results = json.loads((judged / "results.json").read_text())["results"]
    assert [result["num_evaluations"] for result in results] == [4, 4, 2, 4]
    assert [result["accuracy"] for result in results] == [None] * 4
    assert (judged / "report.md").is_file()
    images = {}
    for name, given in (("cached", [f"graph={path}"]), ("uncached", STEPS)):
        drawn, _ = run("sample.py", *given, "num_images=2", "seed=5", folder=name)
        images[name] = load_file(drawn / "samples.safetensors")["images"]
        assert sorted(file.name for file in drawn.glob("*.png")) == ["image-0000.png", "image-0001.png"]
    pipe = pipeline_of(saved)
    for name in ("uncached", "cached"):
        if name == "cached":
            apply(pipe, graph)
        generator = torch_generator(PURPOSE, 5, 1)
        settings = {"guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "np", "generator": generator}
        expected = torch.as_tensor(pipe(class_labels=[125], **settings).images)[0].movedim(-1, 0) * 2 - 1
        torch.testing.assert_close(images[name][1], expected)
    assert not torch.equal(*images.values())


def test_compare_measures_against_latents_and_continues(call, refused, run, saved, tmp_path):
    prompts = tmp_path / "classes.txt"
    prompts.write_text("3\n7\n")
    methods = [
        "random",
        "smoothcache",
        "top_k",
        "best",
        "gram",
        "gram_linear",
        "gram_hold",
        "block_caching",
        "late_first",
        "interval_taylor2",
    ]
    options = [
        f"prompts={prompts}",
        "budgets=[0.6]",
        "num_images=2",
        "timing_batch=1",
        "timing_repetitions=1",
        *(f"methods.{name}=false" for name in methods),
    ]
    folder, _ = run("compare.py", *options, steps=STEPS)
    cells = {path.stem: json.loads(path.read_text())["cells"] for path in (folder / "cells").glob("*.json")}
    assert {name.split("-")[0] for name in cells if cells[name]} == {"fewer_steps", "interval"}
    by_hand = {count: latents(saved, [3, 7], count) for count in (4, 2)}
    assert cells["fewer_steps-2.4-0"][0]["mse"] == pytest.approx(
        float((by_hand[2] - by_hand[4]).square().mean()), rel=1e-3
    )
    before = (folder / "cells" / "fewer_steps-2.4-0.json").stat().st_mtime_ns
    (folder / "cells" / "interval-2.4-0.json").unlink()
    run("compare.py", *options, steps=STEPS)
    assert (folder / "cells" / "interval-2.4-0.json").is_file()
    assert (folder / "cells" / "fewer_steps-2.4-0.json").stat().st_mtime_ns == before
    prompts.write_text("3\n8\n")
    other = call("scripts/compare.py", "backend=diffusers", f"pipeline={saved}", *STEPS, run_in(folder), *options)
    assert "holds a comparison with other settings" in refused(other)


def latents(saved, classes, steps):
    """Return what the pipeline's own loop makes of the comparison's noise."""
    pipe = pipeline_of(saved)
    pipe.scheduler.set_timesteps(steps)
    y = torch.tensor([*classes, 1000, 1000])
    x = seeded_noise((4, 8, 8), 1000, 2)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            output = pipe.transformer(torch.cat([x, x]), timestep=t.expand(4), class_labels=y).sample[:, :4]
            cond, uncond = output.chunk(2)
            x = pipe.scheduler.step(uncond + 3.0 * (cond - uncond), t, x).prev_sample
    return x


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("evaluate.py", ["graph=x", "reference=digits"], "scores against a reference are not made from a pipeline"),
        ("sample.py", ["precision=bf16"], "precision is a setting of our own sampler, which a pipeline does not use"),
        (
            "make_graph.py",
            ["policy=gram", "budget=0.6"],
            "policy gram needs a calibration; run l2c calibrate measure=[responses] and pass",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(name, arguments, sentence, call, saved, tmp_path):
    given = ["backend=diffusers", f"pipeline={saved}", run_in(tmp_path / "refused")]
    result = call(f"scripts/{name}", *given, *arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.returncode, len(errors)) == (1, 1)
    assert sentence in errors[0]
    assert not (tmp_path / "refused").exists()


def test_a_missing_pipeline_is_a_missing_folder(call, refused, tmp_path):
    given = ["backend=diffusers", "pipeline=/nope", run_in(tmp_path / "refused")]
    assert "there is no folder /nope; give the pipeline" in refused(call("scripts/make_graph.py", *given))


@pytest.mark.parametrize("command", ["compare", "train", "sample", "evaluate"])
def test_a_pipeline_that_is_not_named_is_asked_for(command, call, refused):
    assert "pipeline is missing; say pipeline=VALUE" in refused(call("l2c/__main__.py", command, "backend=diffusers"))


def test_options_of_the_pipelines_call_are_taken(call, tmp_path):
    PIPELINES["pixart"]().save_pretrained(tmp_path / "pixart")
    size = "model.options={height: 8, width: 8, use_resolution_binning: false, clean_caption: false}"
    given = ["backend=diffusers", f"pipeline={tmp_path / 'pixart'}", size, "solver.num_evaluations=4"]
    result = call("scripts/make_graph.py", *given, "policy=interval", run_in(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load(tmp_path / "run" / "cache_graph.json")
    assert (graph.model, graph.num_evaluations) == ("PixArtTransformer2DModel", 4)
