"""An installed wheel has what a checkout has: presets, the schema, bundled weights."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_presets_schema_and_weights(tmp_path):
    builders = pytest.importorskip("hatchling.builders.wheel")
    (wheel,) = builders.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"l2c/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    weights = {
        f"l2c/checkpoints/{name}"
        for name in ("dit_digits.safetensors", "uvit_digits.safetensors", "dit_digits_ddim20.json")
    }
    assert (
        presets | weights | {"l2c/graph/cache_graph.schema.json", "l2c/checkpoints/digits_classifier.safetensors"}
        <= names
    )
    assert len(presets) > 25
