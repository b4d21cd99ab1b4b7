"""A sweep: one bad job fails alone with its sentence, the others run, the exit code says that some failed."""

import l2c


def test_one_bad_job_fails_alone(call, tmp_path):
    small = [
        "model=uvit_digits",
        "model.checkpoint=random",
        "model.args.embed_dim=32",
        "model.args.depth=2",
        "solver.num_evaluations=4",
        "data.batch_size=2",
        "trainer.accelerator=cpu",
        "trainer.max_steps=1",
        "+trainer.enable_progress_bar=false",
    ]
    result = call("train_router.py", "-m", *small, "router.penalty=1e-3,oops,3e-3", f"hydra.sweep.dir={tmp_path}")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: job 1: router.penalty must be a number >= 0, got 'oops'" in result.stderr
    assert "error: 1 job of the sweep failed" in result.stderr
    for job in ("0", "2"):
        l2c.CacheGraph.load(tmp_path / job / "cache_graph.json")
    assert not (tmp_path / "1").exists()


def test_a_job_that_would_replace_what_an_earlier_one_wrote_is_refused(call, tmp_path):
    sweep = [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same", "policy=interval"]
    result = call("scripts/make_graph.py", "-m", *sweep, "solver.num_evaluations=4,5")
    assert result.returncode == 1
    said = f"error: job 1: the run folder {tmp_path}/same is also that of job 0 of this sweep"
    assert said in result.stderr
    assert "leave hydra.sweep.subdir out" in result.stderr
    assert l2c.CacheGraph.load(tmp_path / "same" / "cache_graph.json").num_evaluations == 4
