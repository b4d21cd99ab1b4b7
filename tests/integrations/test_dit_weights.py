"""DiT here and in diffusers: one network, weights in both directions, one graph for both."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

import l2c
from l2c.backbones.dit import sincos_position_embedding
from l2c.integrations.diffusers import apply
from l2c.integrations.dit_weights import from_diffusers, to_diffusers
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph as make_policy_graph


@pytest.fixture
def dit(make_dit):
    backbone = make_dit(depth=3)
    backbone.pos_embed.copy_(sincos_position_embedding(32, 4))  # fixed by the architecture
    return backbone


def test_weights_both_ways(dit, make_batch):
    x, t, y = make_batch(dit)
    model = to_diffusers(dit)
    torch.testing.assert_close(model(x, timestep=t, class_labels=y).sample, dit(x, t, y), rtol=1e-5, atol=1e-5)
    back = from_diffusers(model)
    assert torch.equal(back(x, t, y), dit(x, t, y))
    for key, value in dit.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_weights_of_diffusers_own_frequencies(make_family):
    family = make_family("dit")
    for block in family.model.transformer_blocks:  # its default epsilon is not the published one
        block.norm1.norm.eps = block.norm3.eps = 1e-6
    for block in family.model.transformer_blocks[1:]:  # the embedders of all blocks are one in the published network
        block.norm1.emb.load_state_dict(family.model.transformer_blocks[0].norm1.emb.state_dict())
    t = torch.tensor([951.0, 951.0])
    ours = from_diffusers(family.model)(family.x, t, family.conditions["class_labels"])
    torch.testing.assert_close(ours, family(family.x, 951.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("forecast", [False, True], ids=["held", "of three outputs"])
def test_one_graph_for_both(dit, make_graph, make_batch, forecast):
    graph = make_graph(dit)
    if forecast:
        uncached = l2c.Sampler(dit, solver="ddim", num_evaluations=9)
        graph = make_policy_graph("interval", PolicyContext.of(uncached), n=2, reuse="taylor2")
        assert max(len(weights) for row in graph.entry_weights for weights in row) == 3
    model = to_diffusers(dit)
    x, _, y = make_batch(dit)
    expected = []

    class Recording(l2c.DiT):
        def run(self, x, condition, layers):
            output = super().run(x, condition, layers)
            expected.append((x, output))
            return output

    dit.__class__ = Recording
    l2c.Sampler(dit, graph=graph).sample(y.clamp(max=4), noise=x)
    apply(model, graph)
    assert len(expected) == graph.num_evaluations
    for t, (x, output) in zip(graph.timesteps, expected, strict=True):
        ours = model(x, timestep=torch.full((3,), t), class_labels=y.clamp(max=4)).sample
        torch.testing.assert_close(ours, output, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_converted_is_said(make_family):
    with pytest.raises(ValueError, match="norm_eps is 1e-05, but the published DiT has 1e-06"):
        from_diffusers(make_family("dit").model)
    with pytest.raises(ValueError, match="need a DiTTransformer2DModel, got PixArt"):
        from_diffusers(make_family("pixart").model)
