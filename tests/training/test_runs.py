"""Runs of training: what ends them early, what they leave, and what a second one in the folder does."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from l2c.backbones.uvit import UViT
from l2c.commands.train_router import train_by
from l2c.drawing.lit_drawing import LitSampler
from l2c.drawing.run import sample_images
from l2c.io.bundled import project_folder
from l2c.io.folder_lock import locked
from l2c.io.tensors import leaves_of
from l2c.sampling.sampler import Sampler
from l2c.sampling.solver_settings import SolverSettings
from l2c.testbeds.digits_data import DigitsDataModule
from l2c.training.checkpoints import WholeCheckpoints
from l2c.training.routers.lit_router import LitRouter
from l2c.training.routers.run import _identity as run_identity
from l2c.training.routers.settings import LatentsSettings, RouterTraining
from l2c.training.run_folder import resume_from
from l2c.training.watch import StopBySignal, shown_metrics

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


def test_of_a_finished_run_only_what_it_wrote_is_replaced(tmp_path):
    small = ["trainer.max_steps=2", "checkpoint_every_n_steps=1", "trainer.log_every_n_steps=1"]
    train_by(config(*small), tmp_path)
    theirs = {
        name: tmp_path / name
        for name in ("best.ckpt", "metrics/mine.csv", "metrics/version_0/notes.txt", "metrics/version_7/metrics.csv")
    }
    theirs["a copy"] = tmp_path / "kept.ckpt"
    theirs["a copy"].write_bytes((tmp_path / "last.ckpt").read_bytes())
    for path in theirs.values():
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.write_bytes(path.read_bytes() or b"theirs")
    before = {name: path.read_bytes() for name, path in theirs.items()}
    train_by(config(*small, "seed=1"), tmp_path)
    assert {name: path.read_bytes() for name, path in theirs.items()} == before
    train_by(config(*small), tmp_path)
    assert {name: path.read_bytes() for name, path in theirs.items()} == before
    assert len(list(tmp_path.glob("metrics/*/metrics.csv"))) == 2  # theirs, and that of the last run


@pytest.mark.parametrize(
    "name",
    ["last.ckpt", "routers-step=2.ckpt", "routers-step=9.ckpt", "cache_graph.json", "config.yaml", "graph.png"],
)
def test_a_file_of_others_by_the_name_of_a_result_is_refused(finished, name, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    content = (folder / name).read_bytes() if (folder / name).is_file() else b"theirs"
    (folder / name).write_bytes(content + b" ")  # changed, but as a graph or a picture still ours
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = rf"{name} is not what the finished run in that folder wrote|{name} would be overwritten"
    with pytest.raises(ValueError, match=said):
        train_by(config(*SMALL), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_run_whose_metrics_changed_keeps_them(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / "metrics" / "version_0" / "metrics.csv"
    path.write_text("step\n1\n")
    train_by(config(*SMALL), folder)
    assert path.read_text() == "step\n1\n"
    assert json.loads((folder / "run.json").read_text())["kept"] == ["metrics/version_0/metrics.csv"]


SMALL = ["trainer.max_steps=3", "checkpoint_every_n_steps=1", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train_by(config(*SMALL), folder)
    return folder


class Killed(BaseException):
    pass


def killed_at(name, steps, folder, monkeypatch):
    """Train until a checkpoint of a name is written at a step; it and what comes after it are not."""
    own = WholeCheckpoints.save_checkpoint

    def killed(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] == steps and re.fullmatch(name, Path(path).name):
            raise Killed
        own(self, checkpoint, path, storage_options)

    with monkeypatch.context() as patch:
        patch.setattr(WholeCheckpoints, "save_checkpoint", killed)
        with pytest.raises(Killed):
            train_by(config(*SMALL), folder)
    return {path.name for path in folder.glob("*.ckpt")}


def check_trained_alike(*folders):
    """Check that runs have ended with the same weights, states of the optimiser and graph."""
    ends = [torch.load(folder / "last.ckpt", weights_only=True) for folder in folders]
    for part in ("state_dict", "optimizer_states", "global_step"):
        one, other = (dict(leaves_of(end[part], (torch.Tensor, int, float))) for end in ends)
        assert one.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])) for name, value in one.items())
    one, other = ((folder / "cache_graph.json").read_bytes() for folder in folders)
    assert one == other


def damaged(path):
    path.write_bytes(path.read_bytes()[:-200])


def is_a_folder(path):
    path.unlink(missing_ok=True)
    (path / "theirs").mkdir(parents=True)


def is_a_link(path):
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere/last.ckpt")


def is_a_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_a_run_killed_before_its_first_last_checkpoint_goes_on(finished, tmp_path, monkeypatch):
    assert killed_at("last.ckpt", 1, tmp_path, monkeypatch) == {"routers-step=1.ckpt"}
    with pytest.raises(ValueError, match="holds 1 checkpoint of an unfinished run; say resume=auto to go on with it"):
        train_by(config(*SMALL), tmp_path)
    began = resume_from("auto", tmp_path)
    assert began == tmp_path / "routers-step=1.ckpt"
    train_by(config(*SMALL, "resume=auto"), tmp_path)
    check_trained_alike(finished, tmp_path)
    assert {path.name for path in tmp_path.glob("*.ckpt*")} == {"last.ckpt", "routers-step=3.ckpt"}


@pytest.mark.parametrize("spoil", [damaged, is_a_folder, is_a_link, is_a_pipe])
def test_a_run_whose_last_checkpoint_is_none_goes_on_from_the_newest_whole_one(
    finished, tmp_path, monkeypatch, capsys, spoil
):
    killed_at("last.ckpt", 2, tmp_path, monkeypatch)  # last.ckpt is of the step before
    assert resume_from("auto", tmp_path) == tmp_path / "routers-step=2.ckpt"
    spoil(tmp_path / "last.ckpt")
    train_by(config(*SMALL, "resume=auto"), tmp_path)
    assert (
        "last.ckpt is no whole checkpoint and is called last.ckpt.aside now; going on from" in capsys.readouterr().err
    )
    assert os.path.lexists(tmp_path / "last.ckpt.aside")
    check_trained_alike(finished, tmp_path)


def test_a_damaged_checkpoint_of_the_last_step_is_passed_over(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    damaged(folder / "routers-step=3.ckpt")
    assert resume_from("auto", folder) == folder / "last.ckpt"
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no checkpoint that is whole: cannot resume from .*\(and 1 more\)"):
        train_by(config(*SMALL, "resume=auto"), folder)
    assert resume_from("auto", tmp_path) is None
    assert resume_from(None, folder) is None


def test_going_on_from_an_earlier_checkpoint_keeps_the_later_one(tmp_path, monkeypatch, capsys):
    killed_at("last.ckpt", 3, tmp_path, monkeypatch)
    train_by(config(*SMALL, f"resume={tmp_path / 'last.ckpt'}"), tmp_path)
    assert (
        "routers-step=3.ckpt is of a later step and is called routers-step=3.ckpt.aside now"
        in capsys.readouterr().err
    )
    assert {path.name for path in tmp_path.glob("*.ckpt*")} == {
        "last.ckpt",
        "routers-step=3.ckpt",
        "routers-step=3.ckpt.aside",
    }


def test_resume_refuses_data_and_prompts_that_changed(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(DigitsDataModule, "identity", lambda self: {"images_digest": "sha256:0"})
        with pytest.raises(
            ValueError, match=r"belongs to another run: images_digest is sha256:\w+ there, sha256:0 here"
        ):
            train_by(config(*SMALL, "resume=auto"), folder)
    monkeypatch.setattr(UViT, "origin", "of these prompts", raising=False)
    with pytest.raises(ValueError, match=r"another run: pipeline is not set there, of these prompts here"):
        train_by(config(*SMALL, "resume=auto"), folder)


RECORDS = [{"files": []}, {"kept": "x"}, {"kept": {}, "files": 1}, {"files": {"last.ckpt": 1}}, {"state": 1}]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_record_that_others_changed_is_no_reason_to_remove_anything(finished, record, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, **record}))
    theirs = [folder / "metrics" / "mine.csv", folder / "before_decay.ckpt"]
    for path in theirs:
        path.write_text("mine")
    with pytest.raises(ValueError, match=r"is not what the finished run|holds 3 checkpoints|would be overwritten"):
        train_by(config(*SMALL), folder)
    assert all(path.read_text() == "mine" for path in theirs)


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


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = pytest.mark.parametrize(("number", "code"), list(zip(NUMBERS, (130, 143, 129), strict=True)))


@pytest.fixture(autouse=True)
def interruptible():
    """Let Ctrl-C and SIGHUP come, also where a shell runs the tests behind it, or nohup, which ignore them then."""
    given = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in given.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@SIGNALS
@pytest.mark.parametrize("moment", ["setup", "configure_optimizers", "on_fit_start", "on_train_start", "on_fit_end"])
def test_a_signal_outside_of_the_steps_has_the_usual_code(tmp_path, monkeypatch, capsys, moment, number, code):
    handlers = {each: signal.getsignal(each) for each in NUMBERS}
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


@pytest.fixture
def ignoring():
    """Ignore the signals, as a shell does for a job behind it, or a program that starts others."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
    yield before
    ignored = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert set(ignored.values()) == {signal.SIG_IGN}


def signalled(own):
    """Return a method that sends its process the signals first."""

    def run(self, *given, **named):
        for number in NUMBERS:
            os.kill(os.getpid(), number)
        return own(self, *given, **named)

    return run


@pytest.mark.parametrize("moment", ["on_fit_start", "training_step"])
def test_signals_that_are_ignored_do_not_end_a_training(tmp_path, monkeypatch, ignoring, moment):
    monkeypatch.setattr(LitRouter, moment, signalled(getattr(LitRouter, moment)))
    train_by(config("trainer.max_steps=3"), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert (tmp_path / "cache_graph.json").is_file()


def test_signals_that_are_ignored_do_not_end_a_drawing(tmp_path, monkeypatch, make_dit, ignoring):
    monkeypatch.setattr(LitSampler, "predict_step", signalled(LitSampler.predict_step))
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=3)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    assert sample_images(sampler, tmp_path, num_images=4, batch_size=2, shard_size=2, trainer=trainer).num_images == 4


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_moved_away_ends_a_training_with_a_checkpoint(tmp_path, monkeypatch, replaced):
    folder, own = tmp_path / "run", LitRouter.training_step
    kept = folder / ("last.ckpt.aside" if replaced else "last.ckpt")

    def step(self, *given):
        if self.global_step == 2:
            folder.rename(tmp_path / "moved")
            if replaced:
                folder.mkdir()
                (folder / "last.ckpt").write_text("another run's")
        return own(self, *given)

    monkeypatch.setattr(LitRouter, "training_step", step)
    with pytest.raises(OSError, match=rf"run was moved or removed .* after step 3 of 5; wrote {kept}; run the same"):
        train_by(config("trainer.max_steps=5"), folder)
    assert torch.load(kept, weights_only=True)["global_step"] == 3
    assert (tmp_path / "moved" / "run.json").is_file()
    assert not replaced or (folder / "last.ckpt").read_text() == "another run's"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_fails_for_a_moment_does_not_end_a_training(tmp_path, monkeypatch, number):
    trainer = SimpleNamespace(is_global_zero=True, accumulate_grad_batches=1, world_size=1)  # saves no checkpoint
    stop = StopBySignal(tmp_path)
    stop.on_train_start(trainer, None)

    def failing(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "stat", failing)
    stop.on_train_batch_end(trainer, None, None, None, 0)
    number = errno.ENOTDIR
    with pytest.raises(AttributeError, match="save_checkpoint"):
        stop.on_train_batch_end(trainer, None, None, None, 0)


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
def test_a_signal_writes_a_checkpoint_and_resume_goes_on_bit_for_bit(tmp_path, times, number, code):
    times(number == signal.SIGTERM, 1)
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


def test_data_may_lie_elsewhere_but_must_be_the_same(tmp_path):
    settings = RouterTraining(
        solver=SolverSettings(name="ddim", num_evaluations=4, cfg_scale=1.5),
        data=LatentsSettings(folder="there", batch_size=2),
    )
    moved = dataclasses.replace(settings, data=LatentsSettings(folder="elsewhere", batch_size=2))
    known = {"latents_digest": "sha256:1"}
    assert run_identity(settings, known) == run_identity(moved, known)
    assert run_identity(settings, known) != run_identity(moved, {"latents_digest": "sha256:2"})
    assert run_identity(settings, {}) != run_identity(moved, {})  # nothing is known of them but the path
