"""Whole runs at tiny size: what they leave behind, and what a resumed one continues."""

import csv
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from l2c.commands.train_router import train_by as train_router
from l2c.graph.cache_graph import CacheGraph
from l2c.io.bundled import project_folder
from l2c.training.routers.lit_router import LitRouter

TINY = ["model=uvit_digits", "model.checkpoint=random", "model.args.embed_dim=32", "model.args.depth=2"]
QUICK = ["solver.num_evaluations=6", "data.batch_size=4", "trainer.accelerator=cpu", "trainer.max_steps=6"]
SILENT = ["+trainer.enable_progress_bar=false"]


def config(*overrides: str):
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose("train_router", [*TINY, *QUICK, *SILENT, *overrides])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return train_router(config("checkpoint_every_n_steps=3"), folder)


def routers_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_leaves_graph_pictures_metrics_and_config(unbroken):
    names = {path.name for path in unbroken.folder.iterdir()}
    assert {"cache_graph.json", "graph.png", "routers.png", "config.yaml", "last.ckpt"} <= names
    assert not [name for name in names if name.startswith(".")]  # no temporary is left
    graph = CacheGraph.load(unbroken.folder / "cache_graph.json")
    assert graph == unbroken.graph
    assert graph.routed == (2, 4)
    assert graph.provenance["hyperparameters"]["threshold"] == 0.5
    assert graph.cfg_scale is None


def test_a_checkpoint_holds_the_routers_and_nothing_else(unbroken):
    state = routers_of(unbroken.folder)
    assert sorted(state) == ["routers.logits.2", "routers.logits.4"]
    assert not torch.equal(state["routers.logits.2"], torch.full((6,), 2.0))  # and they have been trained


def test_metrics_are_logged(tmp_path):
    train_router(config("trainer.log_every_n_steps=1"), tmp_path)
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 6
    assert {"train/loss", "train/error", "train/penalty", "removed"} <= set(rows[0])


def test_a_resumed_run_keeps_the_metrics_from_before(tmp_path):
    changes = ["checkpoint_every_n_steps=2", "trainer.log_every_n_steps=1"]
    train_router(config(*changes, "trainer.max_steps=2"), tmp_path)
    train_router(config(*changes, "trainer.max_steps=4", "resume=auto"), tmp_path)
    lines = [path.read_text().splitlines() for path in sorted(tmp_path.glob("metrics/*/metrics.csv"))]
    assert [len(part) for part in lines] == [3, 3]  # a header and two steps each


@pytest.mark.parametrize(("data", "router"), [("digits", "l2c"), ("noise", "l2c"), ("noise", "budget")])
def test_resume_continues_bit_for_bit(tmp_path, data, router):
    changes = [f"data={data}", f"router={router}", "data.batch_size=4", "checkpoint_every_n_steps=1"]
    whole = train_router(config(*changes, "trainer.max_steps=7"), tmp_path / "whole")
    train_router(config(*changes, "trainer.max_steps=3"), tmp_path / "broken")
    resumed = train_router(config(*changes, "trainer.max_steps=7", "resume=auto"), tmp_path / "broken")
    expected, got = routers_of(whole.folder), routers_of(resumed.folder)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert whole.graph == resumed.graph


def test_logits_are_clamped_after_each_step(tmp_path, monkeypatch):
    """A step may overshoot the limit, the next one and a checkpoint never see it; resuming stays bit for bit."""
    limit, before = 2.25, []
    draw = LitRouter.training_step

    def training_step(self, batch, batch_index):
        before.append(max(float(logits.detach().abs().max()) for logits in self.routers.logits.values()))
        return draw(self, batch, batch_index)

    monkeypatch.setattr(LitRouter, "training_step", training_step)
    changes = ["router.learning_rate=1.0", f"router.clamp={limit}", "router.penalty=0", "checkpoint_every_n_steps=1"]
    whole = train_router(config(*changes, "trainer.max_steps=6"), tmp_path / "whole")
    assert before[0] == 2.0
    assert before[1:] == [limit] * 5
    trained = routers_of(whole.folder)
    assert all(float(logits.abs().max()) <= limit for logits in trained.values())
    train_router(config(*changes, "trainer.max_steps=3"), tmp_path / "broken")
    assert all(float(logits.abs().max()) <= limit for logits in routers_of(tmp_path / "broken").values())
    train_router(config(*changes, "trainer.max_steps=6", "resume=auto"), tmp_path / "broken")
    assert all(torch.equal(trained[name], logits) for name, logits in routers_of(tmp_path / "broken").items())


def test_a_stronger_penalty_removes_everything_and_none_nothing(tmp_path):
    changes = ["router.learning_rate=1.0", "trainer.max_steps=12"]
    everything = train_router(config(*changes, "router.penalty=1e3"), tmp_path / "strong").graph
    assert everything.removed_fraction == 1.0
    nothing = train_router(config(*changes, "router.init=5.0", "router.penalty=0"), tmp_path / "none").graph
    assert nothing.removed_fraction == 0.0


def test_noise_trains_under_guidance_and_the_graph_says_so(tmp_path):
    graph = train_router(config("data=noise", "data.batch_size=2"), tmp_path).graph
    assert graph.cfg_scale == 0.5


def test_wandb_offline_gets_the_heat_map(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_router(config("logger=wandb", "logger.offline=true", "trainer.max_steps=2"), tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/routers*.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("router.penalty=-1", "router.penalty must be a number >= 0, got -1"),
        ("router.error=median", "router.error must be mean or sum"),
        ("router.visits=often", "router.visits must be balanced or random"),
        ("router.penalty_weights=flops", "router.penalty_weights must be macs or ones"),
        ("router.init=warm", "router.init must be a number or normal, got 'warm'"),
        ("data.name=cats", "unknown data 'cats'"),
        ("logger.name=tensors", "logger.name must be csv or wandb, got 'tensors'"),
        ("solver.name=dimm", "did you mean ddim?"),
        ("solver.num_evaluations=2", "there is no evaluation to route"),
        ("resume=nowhere.ckpt", "no checkpoint to resume from"),
        ("model.args.img_size=16", "take data=noise"),
        ("model.args.dept=2", "the arguments of model uvit_digits do not fit"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, change, message):
    prefix = "+" if change.startswith("model.args.dept=") else ""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_router(config(prefix + change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(unbroken, tmp_path):
    last = unbroken.folder / "last.ckpt"
    with pytest.raises(ValueError, match=r"another run: solver.num_evaluations is 6 there, 8 here;"):
        train_router(config("solver.num_evaluations=8", f"resume={last}"), tmp_path / "run")
    (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot resume from"):
        train_router(config(f"resume={tmp_path / 'cut.ckpt'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            [],
            r"routers of uvit_digits with data\.batch_size=4, 4 of them at a time .* trainer\.precision=32-true; say "
            r"trainer\.accumulate_grad_batches=2 .* or recompute_activations=true or trainer\.precision=bf16-mixed",
        ),
        (
            ["trainer.accumulate_grad_batches=2", "recompute_activations=true"],
            r"4, 2 of them at a time .*; say trainer\.accumulate_grad_batches=4 \([^()]*\) or trainer\.precision",
        ),
    ],
)
def test_running_out_of_memory_is_one_sentence(tmp_path, monkeypatch, changes, says):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(LitRouter, "training_step", full)
    with pytest.raises(MemoryError, match=says):
        train_router(config(*changes), tmp_path)
    assert not (tmp_path / "cache_graph.json").exists()


def test_a_second_run_in_the_same_folder_replaces_the_first(tmp_path):
    train_router(config("trainer.max_steps=4", "checkpoint_every_n_steps=2"), tmp_path)
    train_router(config("trainer.max_steps=2", "checkpoint_every_n_steps=2"), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not list(tmp_path.glob("last-v*"))


def test_an_accelerator_that_is_not_there_is_said_in_a_sentence(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="do not fit this machine"):
        train_router(config("trainer.accelerator=gpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
