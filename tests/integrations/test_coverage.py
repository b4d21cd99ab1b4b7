"""The checks of benchmarks/coverage.py on a class for each way in which they differ; docs/coverage.md has all."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

ROOT = Path(__file__).resolve().parents[2]
CLASSES = (
    "CogVideoXTransformer3DModel",  # blocks return (image, text)
    "CogView4Transformer2DModel",  # a feed-forward runs twice
    "HunyuanVideoTransformer3DModel",  # what feeds a shared projection returns a pair
    "OvisImageTransformer2DModel",  # ... and another width
    "HiDreamImageTransformer2DModel",  # blocks in a wrapper, `timesteps`
    "ZImageTransformer2DModel",  # lists of tensors, `t`, time that rises
    "Cosmos3OmniTransformer",  # tokens without a batch
    "MiniMaxMusic3Transformer1DModel",  # a feed-forward that is no module
    "LTX2VideoTransformer3DModel",  # streams of two widths
    "WanVACETransformer3DModel",  # a stream that was added to nothing
    "StableCascadeUNet",  # a U-Net of other blocks, `timestep_ratio`
    "UNet2DModel",
    "UNetSpatioTemporalConditionModel",
)


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_of_diffusers", ROOT / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CLASSES)
def test_layer_and_block_graphs_are_right(name, coverage):
    finding = coverage.examine(name)
    assert finding.verdicts == dict.fromkeys(coverage.KINDS, "yes")


@torch.no_grad()
def test_the_checks_notice_a_layer_that_is_wrong(coverage, monkeypatch):
    from l2c.backbones.layer_form import ResidualForm

    monkeypatch.setattr(ResidualForm, "stand_in", lambda self, module, args, kwargs, branch: branch)
    assert "differs from computing" in coverage.examine("FluxTransformer2DModel").verdicts["block graph"]


def test_layers_are_found_by_what_they_are(coverage):
    from l2c.integrations.diffusers.layers import find_layers

    def kinds(name):
        layers = find_layers(coverage.tiny_model(name).model)
        return {re.sub(r"\.\d+", ".*", layer) for layer in layers}

    assert kinds("Ideogram4Transformer2DModel") == {"layers.*.attention", "layers.*.feed_forward"}
    refiner = {"noise_refiner.*.attn", "noise_refiner.*.feed_forward"}
    assert kinds("Lumina2Transformer2DModel") == refiner | {
        "layers.*.attn",
        "layers.*.feed_forward",
    }
    assert not any("refiner" in kind for kind in kinds("HunyuanVideo15Transformer3DModel"))
    with pytest.raises(ValueError, match=r"found no layers .* in UNet1DModel \(blocks looked at: DownResnet"):
        find_layers(coverage.tiny_model("UNet1DModel").model)


def test_the_table_is_that_of_the_configurations(coverage):
    named = list(coverage.written(ROOT / "docs" / "coverage.md"))
    assert named == [*coverage.configurations(), *coverage.makers()]
