"""Every row of the papers' tables composes and runs, at tiny size."""

import pytest
from hydra import compose, initialize_config_dir

from l2c.commands.frame.sampler import make_sampler
from l2c.commands.train_router import train_by as train_router
from l2c.io.bundled import project_folder

NAMES = sorted(path.stem for path in (project_folder("configs") / "experiment").glob("*.yaml"))
SMALL = {
    "dit": ["model.args.hidden_size=32", "model.args.depth=2", "model.args.num_heads=2"],
    "uvit": ["model.args.embed_dim=32", "model.args.depth=2", "model.args.num_heads=2"],
}
TINY = [
    "model.checkpoint=random",
    "data=noise",
    "data.batch_size=1",
    "trainer=default",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
]
# Learning-to-Cache, table 1, 3 and 9: lambda, threshold, learning rate, evaluations.
PUBLISHED = {
    "l2c_dit_xl2_ddim50": (1e-6, 0.1, 1e-3, 50),
    "l2c_dit_xl2_ddim20": (5e-6, 0.1, 1e-3, 20),
    "l2c_dit_xl2_ddim10": (1e-6, 0.1, 1e-3, 10),
    "l2c_dit_xl2_512_ddim50": (5e-6, 0.9, 1e-3, 50),
    "l2c_dit_l2_ddim50": (1e-6, 0.1, 1e-3, 50),
    "l2c_dit_l2_ddim20": (5e-6, 0.1, 1e-2, 20),
    "l2c_uvit_h2_dpm50": (0.1, 0.9, 1e-3, 50),
    "l2c_uvit_h2_dpm20": (0.1, 0.9, 1e-3, 20),
    **{f"l2c_dit_xl2_ddim20_lambda_{x:.0e}".replace("-0", ""): (x, 0.1, 1e-3, 20) for x in
       (5e-7, 1e-6, 1e-5, 5e-5, 1e-4)},
}  # fmt: skip


def composed(*overrides, config="train_router"):
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose(config, list(overrides))


def test_every_row_is_there():
    assert set(PUBLISHED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_published_ones(name):
    cfg = composed(f"experiment={name}")
    penalty, threshold, rate, num_evaluations = PUBLISHED[name]
    router = cfg.router
    assert (router.penalty, router.threshold, router.learning_rate) == (penalty, threshold, rate)
    assert (router.init, router.penalty_weights, router.visits) == ("normal", "ones", "random")
    assert cfg.solver.num_evaluations == num_evaluations
    assert (cfg.data.name, cfg.data.batch_size, cfg.trainer.max_steps) == ("latents", 64, 20018)
    if "uvit" in name:
        assert (cfg.solver.name, cfg.solver.cfg_scale, router.error) == ("dpm_solver_2s", 0.4, "sum")
        assert router.round_times
    else:
        assert (cfg.solver.name, cfg.solver.cfg_scale, router.error) == ("ddim", 1.5, "mean")


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_run_and_the_evaluation_matches(tmp_path, name):
    kind = composed(f"experiment={name}").model.backbone
    cfg = composed(f"experiment={name}", *SMALL[kind], *TINY)
    result = train_router(cfg, tmp_path)
    assert result.graph.provenance["steps"] == 2
    assert result.graph.num_evaluations == cfg.solver.num_evaluations

    result.graph.replace(fingerprint=None).save(tmp_path / "graph.json")  # random weights are others each time
    matching = composed(
        f"experiment={name}",
        f"graph={tmp_path / 'graph.json'}",
        "checkpoint=random",
        *SMALL[kind],
        config="evaluate",
    )
    sampler = make_sampler(matching)
    published = PUBLISHED[name]
    assert sampler.solver.num_evaluations == published[3]
    assert sampler.guidance.scale == (0.4 if "uvit" in name else 1.5)
    assert sampler.graph.rows == result.graph.rows


@pytest.mark.parametrize("router", ["budget", "harmonica"])
def test_other_objectives_run_and_resume(tmp_path, router):
    def run(folder, steps, *more):
        tiny = ["model=dit_digits", "model.args.hidden_size=32", "model.args.depth=2", f"router={router}", *more]
        small = [entry for entry in TINY if not entry.startswith(("trainer.max", "data"))]
        sizes = ["solver.num_evaluations=6", "data.batch_size=4", f"trainer.max_steps={steps}"]
        data = "data=noise" if router == "harmonica" else "data=digits"
        cfg = composed(*tiny, *small, data, *sizes, "checkpoint_every_n_steps=1")
        return train_router(cfg, folder).graph

    whole = run(tmp_path / "whole", 10)
    assert whole.provenance["method"] == router
    if router == "budget":
        assert whole.removed_fraction == pytest.approx(0.5, abs=0.1)
    else:
        assert whole.routed == (1, 2, 3, 4, 5)
    run(tmp_path / "broken", 5)
    assert run(tmp_path / "broken", 10, "resume=auto").rows == whole.rows


def test_harmonica_takes_no_images(tmp_path):
    with pytest.raises(ValueError, match="router=harmonica trains on the sampler's own trajectories"):
        train_router(composed("router=harmonica", "data=digits"), tmp_path / "run")
