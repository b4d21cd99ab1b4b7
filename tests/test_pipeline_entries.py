"""The entries on a saved pipeline: calibrate and make a graph, train routers, refuse empty prompts."""

import pytest

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install 'l2c[diffusers]'")

from integrations.conftest import PIPELINES

import l2c
from l2c.integrations.diffusers import apply_cache_graph


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
    policy = ["policy=block_caching", "target=0.6"]
    result = call("scripts/calibrate.py", *options(saved, tmp_path), *policy, *output)
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load(tmp_path / "cache_graph.json")
    assert graph.statistics["evaluations_worth_of_macs"] == pytest.approx(2.4, abs=0.4)
    assert graph.removed_fraction_of("attn") > 0
    pipe = pipeline_of(saved)
    apply_cache_graph(pipe, graph)
    pipe(class_labels=[3], num_inference_steps=4, output_type="np")


def test_train_router_on_prompts(call, refused, saved, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3\n7\n")
    train = ["data=prompts", f"prompts={prompts}", "data.batch_size=2", "trainer.max_steps=2", "router.penalty=1.0"]
    result = call("train_router.py", *options(saved, tmp_path), *train)
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load(tmp_path / "cache_graph.json")
    assert (graph.model, graph.solver, graph.cfg_scale) == ("DiTTransformer2DModel", "DDIMScheduler", 3.0)
    apply_cache_graph(pipeline_of(saved), graph)
    prompts.write_text("")
    empty = call("train_router.py", *options(saved, tmp_path), *train)
    assert "prompts.txt is empty; write one prompt" in refused(empty)
