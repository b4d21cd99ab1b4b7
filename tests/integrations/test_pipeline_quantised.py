"""Weights in 8 bits by torchao: bound as such, calibrated, cached as by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")
pytest.importorskip("torchao", reason="needs the package torchao: pip install '.[pipelines]'")

from test_pipeline_composition import graph_of, swapped_by_hand
from tiny_pipelines import STEPS, tiny_pipeline
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import l2c
from l2c.backbones.digest import known_digest, weights_digest
from l2c.integrations.diffusers import applied, denoiser_of
from l2c.integrations.diffusers.layers import find_layers


def test_int8_weights(tmp_path):
    tiny = tiny_pipeline("flux")
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    pipe.set_progress_bar_config(disable=True)
    layers, graph = find_layers(model), graph_of(pipe, tiny.draw)
    graph = graph.replace(fingerprint=known_digest(model))
    quantize_(model, Int8WeightOnlyConfig())
    assert type(model.proj_out.weight) is not torch.nn.Parameter
    assert find_layers(model) == layers
    with pytest.raises(ValueError, match="was made for other weights of FluxTransformer2DModel"):
        l2c.apply(pipe, graph)
    plain, graph = tiny.draw(), graph.replace(fingerprint=weights_digest(model.state_dict()))
    with swapped_by_hand(model, graph):
        expected = tiny.draw()
    assert not torch.allclose(plain, expected, rtol=1e-4, atol=1e-4)
    with applied(pipe, graph):
        for _ in range(2):
            torch.testing.assert_close(tiny.draw(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(tiny.draw(), plain)
    settings = {"num_inference_steps": STEPS, "guidance_scale": tiny.scale, "options": tiny.options}
    made = l2c.accelerate(pipe, list(tiny.prompts), budget=0.6, num_trajectories=1, folder=tmp_path, **settings)
    assert made.provenance["method"] == "gram"  # gradients pass
    assert made.fingerprint == graph.fingerprint
    assert 0 < float((tiny.draw() - plain).norm() / plain.norm()) < 0.1
    l2c.remove(pipe)
    assert torch.equal(tiny.draw(), plain)
