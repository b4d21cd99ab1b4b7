"""scripts/evaluate.py with a reference: bad input in one sentence, and scores of samples that are there."""

import json

import torch

from l2c.drawing.image_archive import write_archive
from l2c.drawing.image_shards import to_pixels
from l2c.testbeds.digits import digits

EVALUATE = "scripts/evaluate.py"


def test_samples_are_scored(call, tmp_path):
    pixels = to_pixels(digits()[0][:64].roll(1, dims=-1))
    write_archive(tmp_path / "samples.npz", [pixels], 64, (1, 8, 8), torch.zeros(64, dtype=torch.long))
    result = call(
        EVALUATE,
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


def test_a_missing_reference_is_one_sentence(call, refused, tmp_path):
    result = call(EVALUATE, "experiment=l2c_dit_xl2_ddim50", f"hydra.run.dir={tmp_path / 'run'}")
    assert "no reference given; say reference=PATH" in refused(result)
    assert not (tmp_path / "run").exists()
    wrong = call(
        EVALUATE,
        "experiment=l2c_dit_xl2_ddim50",
        "features=digits",
        "reference=none.npz",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert "no reference at none.npz; give an .npz file of real images" in refused(wrong)  # before any drawing
