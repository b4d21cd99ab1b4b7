"""Hooked blocks compile whole: no graph break of ours, and no more graphs than ways to compute and reuse."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from l2c.integrations.diffusers import apply


@pytest.mark.parametrize("name", ["dit", "pixart", "sd3"])
@torch.no_grad()
# A random graph has many ways of computing and reusing.
@torch._dynamo.config.patch(recompile_limit=64)
def test_no_graph_breaks(name, make_family, family_graph):
    family = make_family(name)
    apply(family.model, family_graph(family))
    expected = family.trajectory()
    graphs: Counter[str] = Counter()

    def backend(module, inputs):
        graphs["all"] += 1
        return module.forward

    torch._dynamo.reset()
    for block in family.model.transformer_blocks:
        block.compile(backend=backend, fullgraph=True)  # a graph break would raise
    for ours, theirs in zip(family.trajectory(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    once = graphs["all"]
    family.trajectory()
    assert graphs["all"] == once  # the second trajectory compiles nothing
    assert 0 < once <= len(family.model.transformer_blocks) * len(family.timesteps)
    torch._dynamo.reset()
