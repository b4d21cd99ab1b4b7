"""The checks of benchmarks/coverage.py on a class for each way in which they differ; docs/coverage.md has all."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("attn", "ff")
NO_SOUND = {"audio_hidden_states": None}
CLASSES = (
    "CogVideoXTransformer3DModel",  # blocks return (image, text)
    "CogView4Transformer2DModel",  # a feed-forward runs twice
    "HunyuanVideoTransformer3DModel",  # what feeds a shared projection returns a pair
    "Flux3Transformer2DModel",  # lists of blocks in a dictionary
    "Kandinsky6Transformer3DModel",  # parts of blocks that hold layers and do not run themselves
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


def found(tiny, coverage):
    from l2c.integrations.diffusers.layers import find_layers
    from l2c.integrations.diffusers.recorded.moving import moving_calls

    return find_layers(tiny.model, calls=moving_calls(tiny.model, coverage.runs_of(tiny)))


def kinds_in(layers):
    return {re.sub(r"\.\d+", ".*", layer) for layer in layers}


@torch.no_grad()
def test_blocks_that_run_on_the_prompt_alone_or_not_at_all_are_no_layers(coverage):
    def changed(name, **inputs):
        tiny = coverage.tiny_model(name)
        given = {key: value for key, value in {**tiny.inputs, **inputs}.items() if value is not None}
        return kinds_in(found(replace(tiny, inputs=given), coverage))

    flux = {
        f"{blocks}.*.{layer}" for blocks in ("mode_blocks.image", "single_transformer_blocks") for layer in LAYERS
    }
    assert changed("Flux3Transformer2DModel") == flux
    picture = {"image_cond_hidden_states": torch.randn(1, 16, 4), "image_cond_ids": torch.zeros(16, 4)}
    assert changed("Flux3Transformer2DModel", **picture) == flux  # the picture's own blocks are given what stays
    both, video = changed("Kandinsky6Transformer3DModel"), changed("Kandinsky6Transformer3DModel", **NO_SOUND)
    sound = {kind for kind in both if "audio_dec_block" in kind or ("va_" in kind or "av_" in kind)}
    assert video == both - sound
    assert "visual_transformer_blocks.*.video_dec_block.feed_forward" in video
    assert len(sound) == 5


@torch.no_grad()
def test_layers_of_a_list_some_of_which_run_on_the_prompt_alone_are_all_of_their_kind(coverage):
    from l2c.integrations.diffusers.fit import fitted_to

    tiny = coverage.tiny_model("HunyuanImageTransformer2DModel")
    layers = found(tiny, coverage)
    refiner = "context_embedder.token_refiner.refiner_blocks"
    assert f"{refiner}.1.attn" in layers  # what it is given depends on the time
    assert f"{refiner}.0.attn" not in layers
    row = (True,) * len(layers)
    graph = coverage.graph_of(tiny, layers, [row] * len(tiny.timesteps))
    assert fitted_to(graph, tiny.model).layers == layers
    fewer = tuple(name for name in layers if ".1." not in name)
    short = coverage.graph_of(tiny, fewer, [row[: len(fewer)]] * len(tiny.timesteps))
    with pytest.raises(ValueError, match="more of their kind"):
        fitted_to(short, tiny.model)


def test_layers_are_found_by_what_they_are(coverage):
    from l2c.integrations.diffusers.layers import find_layers

    def kinds(name):
        with torch.no_grad():
            return kinds_in(found(coverage.tiny_model(name), coverage))

    assert kinds("Ideogram4Transformer2DModel") == {"layers.*.attention", "layers.*.feed_forward"}
    refiner = {"noise_refiner.*.attn", "noise_refiner.*.feed_forward"}
    assert kinds("Lumina2Transformer2DModel") == refiner | {
        "layers.*.attn",
        "layers.*.feed_forward",
    }
    assert "layers.*.mlp" not in kinds("Cosmos3OmniTransformer")  # of the text's tokens
    with pytest.raises(ValueError, match=r"found no layers .* in UNet1DModel \(blocks looked at: DownResnet"):
        find_layers(coverage.tiny_model("UNet1DModel").model)


def test_every_denoiser_that_diffusers_exports_has_a_configuration_or_a_reason(coverage):
    import diffusers

    from l2c.integrations.diffusers.denoisers import STRENGTH, is_time, parameters_of

    exported = set()
    for name in filter(re.compile("Transformer|UNet|DiT|UVit|Prior|Decoder|Adapter|Omni").search, dir(diffusers)):
        kind = getattr(diffusers, name)
        if not inspect.isclass(kind) or not issubclass(kind, torch.nn.Module):
            continue
        parameters = parameters_of(kind)
        timed = any(map(is_time, parameters)) and STRENGTH not in parameters
        if timed or kind.__module__.startswith(("diffusers.models.transformers.", "diffusers.models.unets.")):
            exported.add(name)
    configured = set(coverage.configurations())
    assert exported - configured == set(coverage.LEFT_OUT)
    assert all(coverage.LEFT_OUT.values())


def test_the_table_is_that_of_the_configurations(coverage):
    rows = coverage.written(ROOT / "docs" / "coverage.md")
    assert list(rows) == [*coverage.configurations(), *coverage.makers()]
    cells = {name: rows[name].split(" | ")[coverage.PLACE] for name in coverage.configurations()}
    without = {name for name, cell in cells.items() if cell.startswith("none: ")}
    assert without == set(coverage.WITHOUT)  # each other class has a whole pipeline that is right
    assert not any("not tried" in cell for cell in cells.values())
