"""U-ViT against an independent plain forward, with and without labels, time MLP and convolution."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.backbones.dit import timestep_embedding


def both_layers(block, h):
    h = h + block.attn(block.norm1(h))
    return h + block.mlp(block.norm2(h))


def plain_forward(net, x, t, y):
    """The published forward, written without any seam."""
    h = net.patch_embed(x)
    tokens = [net.time_embed(timestep_embedding(t, net.embed_dim))[:, None]]
    if net.label_emb is not None:
        tokens.insert(0, net.label_emb(y)[:, None])
    h = torch.cat([*tokens, h], dim=1) + net.pos_embed
    skips = []
    for block in net.in_blocks:
        h = both_layers(block, h)
        skips.append(h)
    h = both_layers(net.mid_block, h)
    for block in net.out_blocks:
        h = both_layers(block, block.skip_linear(torch.cat([h, skips.pop()], dim=-1)))
    h = net.decoder_pred(net.norm(h))[:, len(tokens) :]
    channels, side, _ = net.input_shape
    patches = side // net.patch_size
    h = h.reshape(len(x), patches, patches, net.patch_size, net.patch_size, channels)
    return net.final_layer(torch.einsum("nhwpqc->nchpwq", h).reshape(x.shape))


@pytest.mark.parametrize(
    "changes",
    [{}, {"conv": False}, {"mlp_time_embed": True}, {"num_classes": -1}, {"qkv_bias": True, "depth": 4}],
    ids=["as published", "without conv", "time MLP", "unconditional", "deeper, with bias"],
)
def test_forward_is_bitwise_the_network_without_the_seam(make_uvit, make_batch, changes):
    net = make_uvit(**changes)
    x, t, y = make_batch(net)
    y = y if net.label_emb is not None else None
    output = net(x, t, y)
    assert torch.equal(output, plain_forward(net, x, t, y))
    assert output.shape == x.shape


def test_each_out_block_sees_its_own_in_block(make_uvit, make_batch):
    """Long skips pair the first in-block with the last out-block."""
    net = make_uvit(depth=4)
    outputs, skips = [], []
    for block in net.in_blocks:
        block.register_forward_hook(lambda _, args, result: outputs.append(result[0]))
    for block in net.out_blocks:
        block.skip_linear.register_forward_hook(lambda _, args, result: skips.append(args[0][..., 32:]))
    net(*make_batch(net))
    assert [torch.equal(a, b) for a, b in zip(outputs, reversed(skips), strict=True)] == [True, True]


def test_skips_are_merged_even_where_both_layers_are_reused(make_uvit, make_batch):
    net = make_uvit(depth=2)
    batch = make_batch(net)
    _, cache = net.forward_cached(*batch, (True,) * 6)
    calls = []
    net.out_blocks[0].skip_linear.register_forward_hook(lambda *_: calls.append(1))
    net.forward_cached(*batch, (False,) * 6, cache)
    assert len(calls) == 1


def test_keys_are_the_published_ones():
    net = l2c.UViT(img_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=6)
    layer = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"]
    layer += ["norm2.weight", "norm2.bias", *(f"mlp.fc{i}.{w}" for i in (1, 2) for w in ("weight", "bias"))]
    expected = {f"{block}.{key}" for block in ("in_blocks.0", "mid_block", "out_blocks.0") for key in layer}
    expected |= {"pos_embed", "label_emb.weight"}
    others = ["patch_embed.proj", "out_blocks.0.skip_linear", "norm", "decoder_pred", "final_layer"]
    expected |= {f"{name}.{kind}" for name in others for kind in ("weight", "bias")}
    assert set(net.state_dict()) == expected
    assert net.pos_embed.shape == (1, 18, 32)


def test_names_labels_and_shapes(make_uvit):
    net = make_uvit(depth=2)
    blocks = ("in_blocks.0", "mid_block", "out_blocks.0")
    assert net.layer_names == tuple(f"{b}.{kind}" for b in blocks for kind in ("attn", "mlp"))
    assert (net.num_layers, net.num_labels, net.conventions.null_label) == (6, 5, 5)
    unconditional = make_uvit(num_classes=-1)
    assert (unconditional.num_labels, unconditional.conventions.null_label) == (0, None)


def test_bad_arguments_are_refused(make_uvit, make_batch):
    with pytest.raises(ValueError, match=r"depth must be even .* got 3"):
        l2c.UViT(depth=3)
    with pytest.raises(ValueError, match="img_size 9 is not a multiple of patch_size 2"):
        l2c.UViT(img_size=9)
    net = make_uvit()
    x, t, _ = make_batch(net)
    with pytest.raises(ValueError, match=r"needs labels: give y .* with 5 for no label"):
        net(x, t)
