"""Graphs under accelerate's offloading, whichever came first: cached with it is cached without it, call after call.

The processor stands in for the accelerator: weights still come and go, and the hooks are those of a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("accelerate", reason="needs the package accelerate: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

import accelerate
from test_pipeline_composition import graph_of
from tiny_pipelines import tiny_pipeline

import l2c
from l2c.backbones.digest import weights_digest
from l2c.integrations.diffusers import applied, denoiser_of

CPU = torch.device("cpu")


def by_model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def sequentially(pipe):
    """Do as `enable_sequential_cpu_offload`, which names the device `cpu:0`: accelerate then loses the parameters."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)


@pytest.fixture(scope="module")
def case():
    """Return a pipeline, a graph bound to its weights, and what is drawn plain and cached."""
    tiny = tiny_pipeline("flux")
    tiny.pipe.set_progress_bar_config(disable=True)
    plain = tiny.draw()
    digest = weights_digest(denoiser_of(tiny.pipe).state_dict())
    graph = graph_of(tiny.pipe, tiny.draw).replace(fingerprint=digest)
    with applied(tiny.pipe, graph):
        cached = tiny.draw()
    assert not torch.equal(plain, cached)
    return tiny, graph, plain, cached


@pytest.mark.parametrize("order", ["offload_first", "graph_first"])
@pytest.mark.parametrize("offload", [by_model, sequentially])
def test_offloaded(case, offload, order):
    tiny, graph, plain, cached = case
    if order == "offload_first":
        offload(tiny.pipe)
    l2c.apply(tiny.pipe, graph)
    if order == "graph_first":
        offload(tiny.pipe)
    for _ in range(2):  # model offload is taken off and put on after each call
        assert torch.equal(tiny.draw(), cached)
    tiny.pipe.remove_all_hooks()
    assert torch.equal(tiny.draw(), cached)
    offload(tiny.pipe)
    l2c.remove(tiny.pipe)
    assert hasattr(denoiser_of(tiny.pipe), "_hf_hook")  # it is still offloaded
    for _ in range(2):
        assert torch.equal(tiny.draw(), plain)
    tiny.pipe.remove_all_hooks()


def test_other_weights_are_refused_where_they_are_kept_elsewhere(case):
    tiny, graph, *_ = case
    sequentially(tiny.pipe)
    assert next(denoiser_of(tiny.pipe).parameters()).is_meta
    with pytest.raises(ValueError, match="was made for other weights"):
        l2c.apply(tiny.pipe, graph.replace(fingerprint="sha256:" + "0" * 64))
    tiny.pipe.remove_all_hooks()
