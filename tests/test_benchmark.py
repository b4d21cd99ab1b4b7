"""The benchmark entries as a user calls them."""

import json

import pytest


def test_benchmark_writes_a_table_and_numbers(call, tmp_path):
    result = call(
        "scripts/benchmark.py",
        "model=dit_digits",
        "checkpoint=null",
        "computed=[0,3,16,16,4,5,6,7,8,9]",
        "mode=[eager]",
        "precision=[bf16,fp32]",
        "cache_dtype=bf16",
        "baseline=reference",
        "repetitions=1",
        f"hydra.run.dir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row.count("1") for row in content["rows"]][1::2] == [0, 3, 16, 16, 4, 5, 6, 7, 8, 9]
    modes = [(r["setting"]["mode"], r["setting"]["precision"]) for r in content["results"]]
    assert modes == [("reference", "fp32"), ("eager", "bf16"), ("eager", "fp32")]
    ours = content["results"][2]
    assert ours["cache_bytes"] == ours["predicted_bytes"] == ours["every_output_bytes"] // 2
    assert "per evaluation outside the 16 layers" in result.stdout
    assert (tmp_path / "evaluations.png").stat().st_size > 1000
    assert "cached / reference cached" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("mode=[fast]", "mode must be a list of eager, compiled, captured, compiled+captured, got ['fast']"),
        ("precision=[int4]", "precision must be a list of fp32, tf32, bf16, fp16"),
        ("computed=[1,2]", "computed has 2 counts, but 10 evaluations are routed"),
        ("device=abacus", "there is no device 'abacus' here; say device=cpu"),
        ("baseline=torch", "unknown baseline 'torch'"),
        ("cache_dtype=int8", "unknown cache_dtype 'int8'"),
        ("batch_sizes=[0]", "batch_sizes must be a list of whole numbers from 1 on"),
    ],
)
def test_benchmark_refuses_in_one_sentence(call, refused, tmp_path, override, says):
    folder = tmp_path / "run"
    line = refused(call("scripts/benchmark.py", "model=dit_digits", override, f"hydra.run.dir={folder}"))
    assert says in line
    assert not folder.exists()


def test_scale_fits_what_it_measured(call, tmp_path):
    result = call(
        "scripts/benchmark_scale.py",
        "centre={batch_size:1,tokens:16,depth:2,num_evaluations:2}",
        "batch_sizes=[2]",
        "tokens=[64]",
        "depth=[4]",
        "num_evaluations=[4]",
        "hidden_size=64",
        "repetitions=1",
        f"hydra.run.dir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["measured"]) == 5
    assert all(m["cache_bytes"] == m["predicted_bytes"] for m in content["measured"])
    assert min(content["coefficients"]) >= 0
    assert (tmp_path / "scale.png").exists()
