"""Training of the small networks that ship with the package: what a run leaves behind."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from l2c.backbones.presets import build_backbone
from l2c.commands.settings import checked
from l2c.commands.train_backbone import train_by
from l2c.io.bundled import project_folder
from l2c.testbeds.classifier_run import train_classifier


def config(name, *overrides):
    with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
        return compose(name, [*overrides, "num_threads=1"])


@pytest.fixture
def train(tmp_path):
    def run(folder, *overrides):
        small = ["model=dit_digits", "model.args.hidden_size=32", "model.args.depth=2", "batch_size=4"]
        output = tmp_path / folder / "weights.safetensors"
        cfg = config("train_backbone", *small, "accelerator=cpu", f"output={output}", *overrides)
        assert train_by(cfg, tmp_path / folder) == output
        return cfg, load_file(output)

    return run


def test_a_run_leaves_averaged_weights_and_metrics(train, tmp_path):
    cfg, weights = train("run", "max_steps=3")
    build_backbone(cfg.model).load_state_dict({name: value.float() for name, value in weights.items()})
    assert {value.dtype for value in weights.values()} == {torch.float16}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics", "weights.safetensors"} <= names
    assert not [name for name in names if name.startswith(".")]  # no temporary is left
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        train("other", "max_steps=3", f"resume={tmp_path / 'last.ckpt'}")


def test_the_classifier_leaves_its_weights_alone(tmp_path):
    cfg = config("train_classifier", "max_steps=2", f"output={tmp_path / 'classifier.safetensors'}")
    trained = train_classifier(checked("train_classifier", cfg).top)
    assert trained.num_held_out == 1797 // 5
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]  # no metrics, no checkpoints
