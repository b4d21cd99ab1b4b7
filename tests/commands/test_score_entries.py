"""scripts/evaluate.py with a reference: bad input in one sentence, and scores of samples that are there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from l2c.drawing.image_archive import write_archive
from l2c.drawing.image_shards import to_pixels
from l2c.testbeds.digits import digits

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/evaluate.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_samples_are_scored(tmp_path):
    pixels = to_pixels(digits()[0][:64].roll(1, dims=-1))
    write_archive(tmp_path / "samples.npz", [pixels], 64, (1, 8, 8), torch.zeros(64, dtype=torch.long))
    result = call(
        f"samples={tmp_path / 'samples.npz'}",
        "reference=digits",
        f"save_statistics={tmp_path / 'statistics.npz'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["num_images"] == 64
    assert scores["fid"] > 1
    assert f"{scores['fid']:.3f}" in result.stdout
    assert (tmp_path / "statistics.npz").is_file()


def test_a_missing_reference_is_one_sentence(tmp_path):
    result = call("experiment=l2c_dit_xl2_ddim50", f"hydra.run.dir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no reference given; say reference=PATH" in result.stderr
    assert not (tmp_path / "run").exists()
