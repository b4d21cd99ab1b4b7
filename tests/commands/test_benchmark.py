"""The benchmark entries as a user calls them."""

import json
import runpy
from pathlib import Path

import pytest
import torch


def test_benchmark_writes_a_table_and_numbers(call, tmp_path):
    result = call(
        "scripts/benchmark.py",
        "model=dit_digits",
        "checkpoint=null",
        "computed=[0,3,16,16,4,5,6,7,8,9]",
        "mode=[eager]",
        "precision=[bf16,fp32]",
        "cache_dtype=bf16",
        "baseline=published",
        "repetitions=1",
        f"hydra.run.dir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row.count("1") for row in content["rows"]][1::2] == [0, 3, 16, 16, 4, 5, 6, 7, 8, 9]
    modes = [(r["setting"]["mode"], r["setting"]["precision"]) for r in content["results"]]
    assert modes == [("published", "fp32"), ("eager", "bf16"), ("eager", "fp32")]
    ours = content["results"][2]
    assert ours["cache_bytes"] == ours["predicted_bytes"] == ours["every_output_bytes"] // 2
    assert "per evaluation outside the 16 layers" in result.stdout
    assert (tmp_path / "evaluations.png").stat().st_size > 1000
    assert "cached / published cached" in (tmp_path / "report.md").read_text()


def test_benchmark_of_a_graph_of_the_whole_output(call, refused, tmp_path):
    folder, graph = tmp_path / "run", tmp_path / "made" / "cache_graph.json"
    made = ["scripts/make_graph.py", "model=dit_digits", "model.layers=[output]", "policy=interval", "policy.n=5"]
    assert call(*made, f"hydra.run.dir={graph.parent}").returncode == 0
    timed = ["scripts/benchmark.py", f"graph={graph}", "mode=[eager]", "repetitions=1", f"hydra.run.dir={folder}"]
    result = call(*timed)
    assert result.returncode == 0, result.stderr
    (ours,) = json.loads((folder / "results.json").read_text())["results"]
    assert ours["cache_bytes"] == ours["predicted_bytes"] == 2 * 8 * 8 * 4  # one image and its unconditional branch
    line = refused(call(*timed, "baseline=published"))
    assert "the published scheme reuses layers of DiT and UViT, got WholeOutput; leave baseline out" in line


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("mode=[fast]", "each eager, compiled, captured or compiled+captured, got ['fast']"),
        ("precision=[int4]", "precision must be a list of at least one item, each fp32, tf32, bf16 or fp16"),
        ("computed=[1,2]", "computed has 2 counts, but 10 evaluations are routed"),
        ("device=abacus", "there is no device 'abacus' here; say device=cpu"),
        ("baseline=torch", "baseline must be published, got 'torch'"),
        ("cache_dtype=int8", "cache_dtype must be fp32, tf32, bf16 or fp16, got 'int8'"),
        ("batch_sizes=[0]", "batch_sizes must be a list of at least one item, each a whole number >= 1"),
    ],
)
def test_benchmark_refuses_in_one_sentence(call, refused, tmp_path, override, says):
    folder = tmp_path / "run"
    line = refused(call("scripts/benchmark.py", "model=dit_digits", override, f"hydra.run.dir={folder}"))
    assert says in line
    assert not folder.exists()


def test_scale_fits_what_it_measured(call, tmp_path):
    result = call(
        "benchmarks/scale.py",
        "centre={batch_size:1,tokens:16,depth:2,num_evaluations:2}",
        "batch_sizes=[2]",
        "tokens=[64]",
        "depth=[4]",
        "num_evaluations=[4]",
        "hidden_size=64",
        "repetitions=1",
        "device=cpu",
        "precision=bf16",
        f"hydra.run.dir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["measured"]) == 5
    assert all(m["cache_bytes"] == m["predicted_bytes"] for m in content["measured"])
    assert content["measured"][0]["cache_bytes"] == 2 * 16 * 64 * 2 * 2  # both branches, half of four layers, 16 bits
    assert content["precision"] == "bf16"
    assert min(content["coefficients"]) >= 0
    assert (tmp_path / "scale.png").exists()


def test_small_models_are_timed_beside_their_macs(call):
    result = call("benchmarks/small_models.py", "--images", "1", "--budgets", "0.5", "--repetitions", "2")
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["uncached", "0.5"]
    assert rows[2][2:4] == ["1.000", "1.000"]
    assert abs(float(rows[3][2]) - 0.5) < 0.01
    assert 0 < float(rows[3][3]) < 1


def test_training_costs_are_measured_in_a_precision(call, tmp_path):
    result = call(
        "benchmarks/router_training.py",
        "model=dit_digits",
        "device=cpu",
        "precision=bf16-mixed",
        "schemes=[published,stored]",
        "repetitions=1",
        "memory=false",
        f"hydra.run.dir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["precision"] == "bf16-mixed"
    assert all(len(scheme["seconds"]) == 1 for scheme in content["schemes"].values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_of_the_benchmark_trains_in_its_precision(make_dit, precision):
    seen = []
    script = Path(__file__).parents[2] / "benchmarks" / "router_training.py"
    schemes = runpy.run_path(str(script))["Schemes"](make_dit(), 2, precision)
    schemes.backbone.blocks[0].attn.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for name in ("frozen", "stored", "published"):
        before = schemes.routers.row(schemes.routed[0]).clone()
        schemes.step(name)()
        assert not torch.equal(schemes.routers.row(schemes.routed[0]), before)
    assert set(seen) == {torch.float32 if precision == "32-true" else torch.bfloat16}


def test_the_training_benchmark_refuses_in_one_sentence(call, refused, tmp_path):
    folder = tmp_path / "run"
    line = refused(call("benchmarks/router_training.py", "precision=int4", f"hydra.run.dir={folder}"))
    assert "precision must be 32-true or bf16-mixed, got 'int4'" in line
    assert not folder.exists()
