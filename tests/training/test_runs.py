"""Runs of training: what ends them early, what they leave, and what a second one in the folder does."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from l2c.commands.train_router import train_by
from l2c.drawing.lit_drawing import LitSampler
from l2c.drawing.run import sample_images
from l2c.io.bundled import project_folder
from l2c.io.folder_lock import locked
from l2c.sampling.sampler import Sampler
from l2c.training.routers.lit_router import LitRouter
from l2c.training.watch import shown_metrics

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model=uvit_digits",
    "model.checkpoint=random",
    "model.args.embed_dim=32",
    "model.args.depth=2",
    "solver.num_evaluations=6",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
]


def config(*overrides):
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose("train_router", [*TINY, "+trainer.enable_progress_bar=false", *overrides])


def routers_of(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_resume_is_exact_where_logits_are_clamped(tmp_path):
    changes = ["router.learning_rate=1.0", "router.clamp=2.2", "checkpoint_every_n_steps=1", "router.penalty=1e3"]
    train_by(config(*changes, "trainer.max_steps=7"), tmp_path / "whole")
    train_by(config(*changes, "trainer.max_steps=3"), tmp_path / "broken")
    assert all(float(logits.abs().max()) <= 2.2 for logits in routers_of(tmp_path / "broken").values())
    train_by(config(*changes, "trainer.max_steps=7", "resume=auto"), tmp_path / "broken")
    whole, resumed = routers_of(tmp_path / "whole"), routers_of(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_budget_resumes_with_the_penalty_of_its_last_step(tmp_path):
    changes = ["router=budget", "router.learning_rate=0.5", "checkpoint_every_n_steps=1"]
    train_by(config(*changes, "trainer.max_steps=7"), tmp_path / "whole")
    train_by(config(*changes, "trainer.max_steps=4"), tmp_path / "broken")
    train_by(config(*changes, "trainer.max_steps=7", "resume=auto"), tmp_path / "broken")
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["objective"] for name in ("whole", "broken")
    ]
    assert states[0] == states[1]
    assert states[0]["penalty"] > 0
    whole, resumed = routers_of(tmp_path / "whole"), routers_of(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("change", ["router.penalty=1e-2", "seed=1", "router.threshold=0.4", "data=noise"])
def test_resume_refuses_other_settings_and_names_them(tmp_path, change):
    small = ["trainer.max_steps=2", "checkpoint_every_n_steps=1"]
    train_by(config(*small), tmp_path)
    graph = (tmp_path / "cache_graph.json").read_bytes()
    other = [change, "data.batch_size=4"] if change == "data=noise" else [change]
    name = "data.name" if change == "data=noise" else change.split("=")[0]
    with pytest.raises(ValueError, match=rf"belongs to another run: .*{re.escape(name)} is .* there, .* here"):
        train_by(config(*small, *other, "resume=auto"), tmp_path)
    assert (tmp_path / "cache_graph.json").read_bytes() == graph


def test_more_steps_and_other_intervals_may_change(tmp_path):
    train_by(config("trainer.max_steps=2", "checkpoint_every_n_steps=1"), tmp_path)
    more = ["trainer.max_steps=3", "checkpoint_every_n_steps=3", "trainer.log_every_n_steps=1", "resume=auto"]
    assert train_by(config(*more), tmp_path).graph.provenance["steps"] == 3


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    step = LitRouter.training_step

    def poisoned(self, batch, index):
        loss = step(self, batch, index)
        return loss * math.nan if self.global_step == 3 else loss

    monkeypatch.setattr(LitRouter, "training_step", poisoned)
    with pytest.raises(
        ValueError, match=r"the loss is nan at step 4; .*last\.ckpt is the last good .*; lower router"
    ):
        train_by(config("trainer.max_steps=6", "checkpoint_every_n_steps=1"), tmp_path)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 3
    assert all(bool(value.isfinite().all()) for value in content["state_dict"].values())
    assert not (tmp_path / "cache_graph.json").exists()


def test_a_finished_run_is_replaced_and_an_unfinished_one_is_not(tmp_path, capsys, monkeypatch):
    small = ["trainer.max_steps=2", "checkpoint_every_n_steps=1"]
    train_by(config(*small), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "finished"
    (tmp_path / "mine.txt").write_text("mine")
    train_by(config(*small, "seed=1"), tmp_path)
    assert "holds a finished run; its checkpoints, metrics and results are replaced" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["version_0"]
    assert (tmp_path / "mine.txt").read_text() == "mine"

    def killed(self, batch, index):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(LitRouter, "training_step", killed)
        more = config("trainer.max_steps=4", "checkpoint_every_n_steps=1", "seed=1", "resume=auto")
        with pytest.raises(RuntimeError):
            train_by(more, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    with pytest.raises(ValueError, match=r"checkpoints of an unfinished run; say resume=auto to go on with it"):
        train_by(config(*small), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before


def test_a_folder_in_use_is_refused(tmp_path):
    holding = locked(tmp_path)
    with ThreadPoolExecutor(1) as another:
        another.submit(holding.__enter__).result()
        with pytest.raises(ValueError, match="is in use by process"):
            train_by(config("trainer.max_steps=1"), tmp_path)
        another.submit(holding.__exit__, None, None, None).result()


def test_nothing_reused_is_said(tmp_path):
    result = train_by(config("trainer.max_steps=2"), tmp_path)
    assert "nothing is reused after 2 steps: every layer is computed; raise trainer.max_steps" in result.advice
    strong = ["router.penalty=1e3", "router.learning_rate=1.0", "trainer.max_steps=12"]
    assert train_by(config(*strong), tmp_path / "strong").advice is None


def test_metrics_of_the_bar_are_readable():
    metrics = {"train/loss": torch.tensor(0.000123), "removed": torch.tensor(0.34), "v_num": 0}
    assert shown_metrics(metrics) == {"loss": "1.23e-04", "removed": "34 %"}


def start(folder, *overrides):
    return subprocess.Popen(
        [sys.executable, "train_router.py", *TINY, f"hydra.run.dir={folder}", *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SIGNALS
@pytest.mark.parametrize("moment", ["setup", "configure_optimizers", "on_fit_start", "on_train_start", "on_fit_end"])
def test_a_signal_outside_of_the_steps_has_the_usual_code(tmp_path, monkeypatch, capsys, moment, number, code):
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    arguments = ["trainer.max_steps=2", "checkpoint_every_n_steps=1", "resume=auto"]
    with monkeypatch.context() as patch:
        own = getattr(LitRouter, moment)

        def interrupted(self, *given, **named):
            os.kill(os.getpid(), number)
            return own(self, *given, **named)

        patch.setattr(LitRouter, moment, interrupted)
        with pytest.raises(SystemExit) as stop:
            train_by(config(*arguments), tmp_path)
    assert stop.value.code == code
    assert {each: signal.getsignal(each) for each in handlers} == handlers
    said = capsys.readouterr().err
    assert f"stopped by {number.name}" in said
    assert ("with resume=auto in this folder" in said) == (tmp_path / "last.ckpt").is_file()
    train_by(config(*arguments), tmp_path)  # the same again


@SIGNALS
def test_a_signal_ends_drawing_with_the_usual_code(tmp_path, monkeypatch, capsys, make_dit, number, code):
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=3)
    draw = partial(sample_images, sampler, tmp_path, num_images=4, batch_size=2, shard_size=2)
    draw = partial(draw, trainer={"accelerator": "cpu", "enable_progress_bar": False})
    with monkeypatch.context() as patch:
        own = LitSampler.predict_step

        def interrupted(self, batch, index):
            if index:
                os.kill(os.getpid(), number)
            return own(self, batch, index)

        patch.setattr(LitSampler, "predict_step", interrupted)
        with pytest.raises(SystemExit) as stop:
            draw()
    assert stop.value.code == code
    assert f"stopped by {number.name}; run the same command again\n" in capsys.readouterr().err
    assert draw().num_images == 2  # the others


def test_a_signal_that_is_swallowed_ends_the_training_all_the_same(tmp_path, monkeypatch):
    def swallowing(self):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LitRouter, "on_fit_start", swallowing)
    with pytest.raises(SystemExit) as stop:
        train_by(config("trainer.max_steps=3"), tmp_path)
    assert stop.value.code == 143
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


@SIGNALS
def test_a_signal_writes_a_checkpoint_and_resume_goes_on_bit_for_bit(tmp_path, number, code):
    steps = 5000
    settings = [f"trainer.max_steps={steps}", "checkpoint_every_n_steps=100000", "router.learning_rate=0.02"]
    process = start(tmp_path / "run", *settings)
    seen = ""
    while not re.search(rf"[1-9]\d*/{steps} ", seen):  # the bar says that steps are made
        more = process.stderr.read(1)
        assert more, seen
        seen += more
    process.send_signal(number)
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, (out, err)
    stopped = re.search(
        rf"stopped by {number.name} after step (\d+) of {steps}; wrote .*last\.ckpt; .*resume=auto", err
    )
    assert stopped, err
    assert "Traceback" not in err
    done = int(stopped[1])
    assert 0 < done < steps
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == done
    more = [f"trainer.max_steps={done + 3}", *settings[1:]]
    train_by(config(*more, "resume=auto"), tmp_path / "run")
    train_by(config(*more), tmp_path / "whole")
    whole, resumed = routers_of(tmp_path / "whole"), routers_of(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
