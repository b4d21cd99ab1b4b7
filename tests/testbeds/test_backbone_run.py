"""Training of the small networks that ship with the package: what a run leaves behind."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from l2c.backbones.presets import build_backbone
from l2c.commands.frame.settings import checked
from l2c.commands.train_backbone import train_by
from l2c.io.bundled import project_folder
from l2c.testbeds.backbone_run import _length_there
from l2c.testbeds.classifier_run import train_classifier
from l2c.testbeds.emoji_classifier import EmojiClassifier
from l2c.testbeds.lit_backbone import LitBackbone
from l2c.testbeds.settings import ClassifierTraining
from l2c.training.checkpoints import RUN, WholeCheckpoints


def config(name, *overrides):
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose(name, [*overrides, "num_threads=1"])


TINY = ["model.args.hidden_size=32", "model.args.depth=2", "batch_size=4", "accelerator=cpu"]


@pytest.fixture
def train(tmp_path):
    def run(folder, *overrides):
        small = ["model=dit_digits", *TINY]
        output = tmp_path / folder / "weights.safetensors"
        cfg = config("train_backbone", *small, "accelerator=cpu", f"output={output}", *overrides)
        assert train_by(cfg, tmp_path / folder) == output
        return cfg, load_file(output)

    return run


def test_a_run_leaves_averaged_weights_and_metrics(train, tmp_path):
    cfg, weights = train("run", "max_steps=3")
    build_backbone(cfg.model).load_state_dict({name: value.float() for name, value in weights.items()})
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert train_by(config("train_backbone", "model=dit_digits", "max_steps=1", *TINY), tmp_path / "unnamed") == (
        tmp_path / "unnamed" / "dit_digits.safetensors"
    )
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics", "weights.safetensors"} <= names
    assert not [name for name in names if name.startswith(".")]  # no temporary is left
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        train("other", "max_steps=3", f"resume={tmp_path / 'last.ckpt'}")


@pytest.fixture
def train_emoji(tmp_path, monkeypatch, tiny_emoji):
    """Return the function that trains a tiny flow on pictures of the emoji's shape."""
    tiny_emoji(tmp_path)
    monkeypatch.setenv("L2C_CACHE", str(tmp_path))

    def run(folder, *overrides):
        small = ["model=dit_emoji", "model.args.hidden_size=24", "model.args.depth=2", "batch_size=4"]
        output = tmp_path / folder / "weights.safetensors"
        cfg = config("train_backbone", *small, "accelerator=cpu", f"output={output}", *overrides)
        train_by(cfg, tmp_path / folder)
        return cfg, load_file(output)

    return run


def test_a_flow_is_trained_by_its_recipe(train_emoji, tmp_path):
    cfg, weights = train_emoji("run", "max_steps=3")
    assert (cfg.dataset, cfg.optimizer, cfg.decay_share) == ("emoji", "muon", 0.45)
    backbone = build_backbone(cfg.model)
    assert (backbone.conventions.schedule, backbone.conventions.prediction) == ("flow", "flow")
    start = backbone.state_dict()
    assert {name: value.shape for name, value in weights.items()} == {k: v.shape for k, v in start.items()}
    assert (tmp_path / "run" / "before_decay.ckpt").is_file()
    _, by_adamw = train_emoji("other", "max_steps=3", "optimizer=adamw", "min_snr_gamma=5", "model.prediction=v")
    assert any(not torch.equal(value, by_adamw[name]) for name, value in weights.items())
    with pytest.raises(ValueError, match="optimizer must be adamw or muon, got 'sgd'"):
        train_emoji("wrong", "optimizer=sgd")
    with pytest.raises(ValueError, match="decay_share must be a number > 0 and <= 1, got 0"):
        train_emoji("wrong", "decay_share=0")


def test_a_longer_run_goes_on_from_before_the_decay(train_emoji, tmp_path):
    """The constant phase knows nothing of the length, so what was kept there is what a longer run passes through."""
    settings = ["decay_share=0.5", "warmup_steps=1", "ema_decay=0.5"]
    _, unbroken = train_emoji("long", "max_steps=8", *settings)
    train_emoji("short", "max_steps=4", *settings)
    resume = f"resume={tmp_path / 'short' / 'before_decay.ckpt'}"
    _, continued = train_emoji("continued", "max_steps=8", *settings, resume)
    for name, value in unbroken.items():
        torch.testing.assert_close(continued[name], value, rtol=0, atol=0)


def test_a_finished_run_goes_on_by_a_restart(train_emoji, tmp_path):
    """Its checkpoints name where it was restarted; a run whose learning rate falls has another length only then."""
    settings = ["decay_share=0.5", "warmup_steps=1"]
    files = WholeCheckpoints()

    def restarts(name):
        return files.load_checkpoint(tmp_path / name / "last.ckpt")[RUN]["settings"].get("restarts")

    train_emoji("first", "max_steps=4", *settings)
    assert restarts("first") is None
    train_emoji("second", "max_steps=8", f"resume={tmp_path / 'first' / 'last.ckpt'}", *settings)
    assert restarts("second") == [4]
    train_emoji("third", "max_steps=9", f"resume={tmp_path / 'second' / 'last.ckpt'}", *settings)
    assert restarts("third") == [4, 8]
    falling = files.load_checkpoint(tmp_path / "second" / "last.ckpt")
    falling["global_step"] = 7
    files.save_checkpoint(falling, tmp_path / "falling.ckpt")
    cfg = config("train_backbone", "model=dit_emoji", "max_steps=8", "decay_share=0.5")
    killed = checked("train_backbone", cfg).top
    assert _length_there(tmp_path / "falling.ckpt", killed) == ({"restarts": [4]}, {"restarts": [4]})
    with pytest.raises(ValueError, match="max_steps is 8 there, 12 here"):
        train_emoji("wrong", "max_steps=12", f"resume={tmp_path / 'falling.ckpt'}", *settings)


@pytest.mark.parametrize(("decay_share", "expected"), [(1.0, [1, 0.505, 0.01]), (0.5, [1, 1, 0.01])])
def test_learning_rates(decay_share, expected):
    backbone = build_backbone(config("train_backbone", "model.args.depth=1").model)
    module = LitBackbone(backbone, learning_rate=1.0, max_steps=1000, warmup_steps=10, decay_share=decay_share)
    optimizer = module.configure_optimizers()["optimizer"]
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # the first of ten steps of warm-up
    assert [schedule(step) for step in (9, 500, 1000)] == pytest.approx(expected, abs=1e-3)


def test_the_emoji_classifier_holds_out_families(train_emoji, tmp_path):
    """Ten families of six, of which two are held out; four pictures of each are in skin tones and do not count."""
    output = tmp_path / "classifier.safetensors"
    cfg = config("train_classifier", "dataset=emoji", "max_steps=2", f"output={output}")
    trained = train_classifier(checked("train_classifier", cfg).top)
    assert trained.num_held_out == 2 * 2
    classifier = EmojiClassifier.load(output)
    assert classifier.real_statistics()[0].abs().sum() > 0
    with pytest.raises(ValueError, match="dataset must be digits or emoji, got 'photos'"):
        ClassifierTraining(dataset="photos", output=str(output))


def test_the_classifier_leaves_its_weights_alone(tmp_path):
    cfg = config("train_classifier", "max_steps=2", f"output={tmp_path / 'classifier.safetensors'}")
    trained = train_classifier(checked("train_classifier", cfg).top)
    assert trained.num_held_out == 1797 // 5
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]  # no metrics, no checkpoints
