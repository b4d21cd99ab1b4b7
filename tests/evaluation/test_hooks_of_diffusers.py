"""Methods of others are those of the hooks in diffusers: the same images of one network, as many layers computed."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from diffusers import hooks
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.models.attention import BasicTransformerBlock

from l2c.evaluation.dynamic import Change, DynamicMethod, DynamicSampler, Magnitude
from l2c.evaluation.dynamic_methods import measure
from l2c.integrations.dit_weights import to_diffusers
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler

E = 8
BLOCK = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)

INNER = {"attn1": "attn1.to_q", "ff": "ff.net.0"}


@pytest.fixture
def uncached(make_uncached):
    return make_uncached(3, E)


@pytest.fixture
def hooked(uncached, start):
    """Return the images of the network in diffusers under a hook, and how often its middle block's layers ran."""
    TransformerBlockRegistry.register(BasicTransformerBlock, BLOCK)  # which diffusers has not registered
    labels, noise = start

    def images(apply, **options):
        model, calls, now = to_diffusers(uncached.backbone), dict.fromkeys(INNER, 0), [0.0]
        for layer, inner in INNER.items():  # is called where the layer computes, whatever stands in for it

            def count(*_, layer=layer):
                calls[layer] += 1

            model.transformer_blocks[1].get_submodule(inner).register_forward_hook(count)
        if "current_timestep_callback" in options:
            options["current_timestep_callback"] = lambda: now[0]
        kind, config = apply
        kind(model, config(**options))
        _set_cache_context(model, CacheContext("one"))

        def evaluate(x, t):
            now[0] = t
            with torch.no_grad():
                return model(x, timestep=torch.full((1,), t), class_labels=labels).sample

        return uncached.solver.sample(evaluate, noise), calls

    return images


FIRST_BLOCK = (hooks.apply_first_block_cache, hooks.FirstBlockCacheConfig)
MAGNITUDES = (hooks.apply_mag_cache, hooks.MagCacheConfig)
TAYLOR = (hooks.apply_taylorseer_cache, hooks.TaylorSeerCacheConfig)
BROADCAST = (hooks.apply_pyramid_attention_broadcast, hooks.PyramidAttentionBroadcastConfig)
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.4])
def test_first_block_cache(uncached, start, hooked, spared, threshold):
    expected, calls = hooked(FIRST_BLOCK, threshold=threshold)
    ours = DynamicSampler(uncached, DynamicMethod(Change), threshold)
    close(ours.sample(start[0], noise=start[1]), expected)
    assert ours.evaluations_worth == pytest.approx(E - spared(E - calls["attn1"], slice(2, None)))


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.5])
def test_mag_cache(uncached, start, hooked, spared, threshold):
    ratios = measure(uncached, *start).ratios
    options = {"num_inference_steps": E, "mag_ratios": list(ratios), "max_skip_steps": 3, "retention_ratio": 0.2}
    expected, calls = hooked(MAGNITUDES, threshold=threshold, **options)
    criterion = partial(Magnitude, ratios=ratios, max_skips=3, retention=0.2)
    ours = DynamicSampler(uncached, DynamicMethod(criterion, front=0), threshold)
    close(ours.sample(start[0], noise=start[1]), expected)
    assert ours.evaluations_worth == pytest.approx(E - spared(E - calls["attn1"], slice(None)))


def test_mag_cache_measures_the_same_ratios(uncached, start, hooked, capsys):
    hooked(MAGNITUDES, num_inference_steps=E, calibrate=True)
    said = capsys.readouterr().out
    theirs = [float(value) for value in said[said.index("[1.0") + 1 : said.rindex("]")].split(",")]
    assert measure(uncached, *start).ratios == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("order", "reuse"), [(1, "taylor1"), (2, "taylor2")])
@pytest.mark.parametrize("interval", [2, 3])
def test_taylorseer(uncached, start, hooked, order, reuse, interval):
    layers = [r"transformer_blocks\.\d+\.(attn1|ff)"]
    options = {"max_order": order, "taylor_factors_dtype": torch.float32, "cache_identifiers": layers}
    expected, calls = hooked(TAYLOR, cache_interval=interval, disable_cache_before_step=2, **options)
    graph = make_graph("interval", PolicyContext.of(uncached), n=interval, first=2, phase=-3 % interval, reuse=reuse)
    assert sum(row[2] for row in graph.rows) == calls["attn1"] == calls["ff"] < E
    close(Sampler(uncached.backbone, graph=graph).sample(start[0], noise=start[1]), expected)


@pytest.mark.parametrize("n", [2, 3])
def test_pyramid_attention_broadcast(uncached, start, hooked, n):
    options = {"spatial_attention_timestep_skip_range": (100, 800), "current_timestep_callback": math.nan}
    expected, calls = hooked(BROADCAST, spatial_attention_block_skip_range=n, **options)
    graph = make_graph("pab", PolicyContext.of(uncached), n=n)
    assert [sum(row[layer] for row in graph.rows) for layer in (2, 3)] == [calls["attn1"], calls["ff"]]
    assert calls["attn1"] < E == calls["ff"]
    close(Sampler(uncached.backbone, graph=graph).sample(start[0], noise=start[1]), expected)
