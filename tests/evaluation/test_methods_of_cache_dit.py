"""`dbcache` is that of cache-dit, and `teacache` its published rule: the same images, as much computed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from l2c.backbones.dit import modulate, unpatchify
from l2c.calibration.cost import count_macs
from l2c.evaluation.dynamic import Accumulated, Change, DynamicMethod, DynamicSampler
from l2c.evaluation.dynamic_methods import measure

E, WARMUP = 24, 4  # cache-dit's line has a slope from the fourth evaluation on
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.fixture
def uncached(make_uncached):
    return make_uncached(4, E)


@pytest.mark.parametrize(("front", "back"), [(1, 0), (2, 0), (1, 1)])
@pytest.mark.parametrize("forecast", [False, True])
@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_dbcache(uncached, start, spared, monkeypatch, front, back, forecast, threshold):
    pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    cache_dit = pytest.importorskip(
        "cache_dit", reason="needs the package cache-dit: pip install --no-deps cache-dit"
    )
    from cache_dit.caching.cache_blocks.pattern_3_4_5 import CachedBlocks_Pattern_3_4_5 as Cached

    from l2c.integrations.dit_weights import to_diffusers

    # diffusers reads the embedding for its last layer off the first block, in whose place cache-dit puts its own.
    monkeypatch.setattr(Cached, "norm1", property(lambda blocks: blocks.transformer_blocks[0].norm1), raising=False)
    model, calls = to_diffusers(uncached.backbone), []
    blocks = model.transformer_blocks
    blocks[front].register_forward_hook(lambda *_: calls.append(True))
    adapter = cache_dit.BlockAdapter(
        pipe=None, transformer=model, blocks=blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_3
    )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=front,
        Bn_compute_blocks=back,
        residual_diff_threshold=threshold,
        max_warmup_steps=WARMUP,
        num_inference_steps=E,
    )
    line = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if forecast else None
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=line)

    def evaluate(x, t):
        with torch.no_grad():
            return model(x, timestep=torch.full((1,), t), class_labels=start[0]).sample

    expected = uncached.solver.sample(evaluate, start[1])
    ours = DynamicSampler(
        uncached, DynamicMethod(partial(Change, warmup=WARMUP), front, back, forecast=forecast), threshold
    )
    close(ours.sample(start[0], noise=start[1]), expected)
    assert WARMUP < len(calls) < E
    middle = slice(2 * front, len(count_macs(uncached.backbone).layers) - 2 * back)
    assert ours.evaluations_worth == pytest.approx(E - spared(E - len(calls), middle))


@pytest.mark.parametrize("threshold", [1.0, 2.0, 4.0])
def test_teacache(uncached, start, spared, threshold):
    # The rule of arXiv 2411.19108, section 3.3, written out for one image: the summed polynomial in the relative L1
    # change of the modulated input decides, the first and the last evaluation compute, what is kept is the sum that
    # all blocks add.
    measured = measure(uncached, *start)
    fit = np.polyfit(measured.input_changes.flatten().double(), measured.output_changes.flatten().double(), 2)
    rescale, backbone = np.poly1d(fit), uncached.backbone
    state = {"before": None, "sum": 0.0, "kept": None, "evaluation": 0, "computed": 0}

    @torch.no_grad()
    def evaluate(x, t):
        *modulations, final = backbone.condition(torch.full((1,), t), start[0])
        shift, scale = modulations[0].chunk(6, dim=1)[:2]
        tokens = backbone.x_embedder(x) + backbone.pos_embed
        seen = modulate(backbone.blocks[0].norm1(tokens), shift, scale)
        at_an_end = state["evaluation"] in (0, E - 1)
        if state["evaluation"]:
            change = (seen - state["before"]).abs().mean() / state["before"].abs().mean()
            state["sum"] += max(float(rescale(float(change))), 0.0)
        if at_an_end or state["sum"] >= threshold:
            after = tokens
            for block, modulation in zip(backbone.blocks, modulations, strict=True):
                after, _ = block(after, modulation)
            state.update(kept=after - tokens, sum=0.0, computed=state["computed"] + 1)
        state.update(before=seen, evaluation=state["evaluation"] + 1)
        return unpatchify(
            backbone.final_layer(tokens + state["kept"], final), backbone.patch_size, backbone.out_channels
        )

    expected = uncached.solver.sample(evaluate, start[1])
    criterion = partial(Accumulated, coefficients=tuple(fit.tolist()), num_evaluations=E)
    ours = DynamicSampler(uncached, DynamicMethod(criterion, front=0), threshold)
    close(ours.sample(start[0], noise=start[1]), expected)
    assert ours.evaluations_worth == pytest.approx(E - spared(E - state["computed"], slice(None)))
    assert 2 < state["computed"] < E
