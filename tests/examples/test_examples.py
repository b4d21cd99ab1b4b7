"""The programs and the notebook of examples/ run as they are, with small settings."""

from __future__ import annotations

import json
import runpy
import shlex
import socket
import sys
from pathlib import Path

import pytest
import torch

import l2c

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_module_of_ones_own(capsys):
    runpy.run_path(str(EXAMPLES / "module.py"), run_name="__main__")
    assert "mean squared error" in capsys.readouterr().out


def test_the_notebook_runs_from_top_to_bottom(command, tmp_path, monkeypatch, capsys):
    plots = pytest.importorskip("matplotlib.pyplot")
    plots.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "digits.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, object] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("!l2c "):
            name, *overrides = shlex.split(source[1:])[1:]
            small = [override for override in overrides if not override.startswith("trainer.max_steps")]
            done = command(name, *small, "trainer.max_steps=20", "router.penalty=3e-3", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        elif cell["cell_type"] == "code":
            exec(compile(source, "digits.ipynb", "exec"), namespace)
    assert "mean squared error" in capsys.readouterr().out


def test_a_pipeline_whose_weights_are_split(tiny_pipeline, tmp_path, monkeypatch, capsys):
    """By one process here; tests/integrations/test_pipeline_parallel.py has two."""
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told["MASTER_PORT"] = free.getsockname()[1]
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    files = [str(tiny_pipeline), str(tmp_path / "prompts.txt"), str(tmp_path / "c.safetensors")]
    few = ["--steps", "2", "--trajectories", "1", "--directions", "1", "--true-errors", "0", "--group", "2"]
    monkeypatch.setattr(sys, "argv", ["sharded.py", *files, *few])
    runpy.run_path(str(EXAMPLES / "sharded.py"), run_name="__main__")
    assert "wrote" in capsys.readouterr().out
    assert l2c.Calibration.load(tmp_path / "c.safetensors").settings["responses"]["group"] == 2


def test_a_pipeline_in_twenty_lines(tiny_pipeline, quick_acceleration, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pipeline.py", str(tiny_pipeline), "a cat"])
    text = (EXAMPLES / "pipeline.py").read_text(encoding="utf-8")
    assert '"num_inference_steps": 20' in text
    (tmp_path / "few.py").write_text(text.replace('"num_inference_steps": 20', '"num_inference_steps": 4'))
    runpy.run_path(str(tmp_path / "few.py"), run_name="__main__")
    assert (tmp_path / "cached.png").is_file()
    assert "evaluations" in capsys.readouterr().out
