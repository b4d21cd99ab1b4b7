"""DiT against an independent plain forward, and its fixed embeddings against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import l2c
from l2c.backbones.dit import timestep_embedding, unpatchify


def plain_forward(net, x, t, y):
    """The published forward, written without any seam."""
    c = net.t_embedder(t) + net.y_embedder.embedding_table(y)
    h = net.x_embedder(x) + net.pos_embed
    for block in net.blocks:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)
        h = h + gate_a[:, None] * block.attn(block.norm1(h) * (1 + scale_a[:, None]) + shift_a[:, None])
        h = h + gate_m[:, None] * block.mlp(block.norm2(h) * (1 + scale_m[:, None]) + shift_m[:, None])
    shift, scale = net.final_layer.adaLN_modulation(c).chunk(2, dim=1)
    h = net.final_layer.linear(net.final_layer.norm_final(h) * (1 + scale[:, None]) + shift[:, None])
    side = net.input_shape[1] // net.patch_size
    h = h.reshape(len(x), side, side, net.patch_size, net.patch_size, net.out_channels)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), net.out_channels, *net.input_shape[1:])


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_forward_equals_the_network_without_the_seam(make_dit, make_batch, learn_sigma):
    net = make_dit(depth=3, learn_sigma=learn_sigma).double()
    x, t, y = make_batch(net)
    output = net(x.double(), t, y)
    # Fused multiply-adds round once where the published text rounds twice; in 64 bits that is all there is.
    torch.testing.assert_close(output, plain_forward(net, x.double(), t, y), rtol=1e-12, atol=1e-12)
    assert output.shape == (3, 8 if learn_sigma else 4, 8, 8)


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 946.0, 951.8417])
    embedding = timestep_embedding(t, 8)
    for n, time in enumerate(t.tolist()):
        angles = [time * 10_000 ** (-i / 4) for i in range(4)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        np.testing.assert_allclose(embedding[n].numpy(), expected, atol=1e-4)
    assert timestep_embedding(t, 7).shape == (4, 7)
    assert torch.equal(timestep_embedding(t, 7)[:, -1], torch.zeros(4))


def test_unpatchify_puts_every_entry_in_its_place():
    side, p, channels = 3, 2, 2
    tokens = torch.randn(2, side * side, p * p * channels)
    image = unpatchify(tokens, p, channels)
    for c in range(channels):
        for row in range(side * p):
            for column in range(side * p):
                token = (row // p) * side + column // p
                entry = ((row % p) * p + column % p) * channels + c
                assert torch.equal(image[:, c, row, column], tokens[:, token, entry])


def test_positions_are_encoded_column_first():
    net = l2c.DiT(input_size=8, hidden_size=32, depth=1, num_heads=2)
    side, quarter = 4, 8
    for token in range(side * side):
        row, column = divmod(token, side)
        omega = 10_000.0 ** -(np.arange(quarter) / quarter)
        parts = [f(axis * omega) for axis in (column, row) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(net.pos_embed[0, token].numpy(), np.concatenate(parts), atol=1e-6)
    assert not net.pos_embed.requires_grad


def test_fresh_weights_start_as_the_identity(make_batch):
    """adaLN-Zero: the gates and the output start at zero."""
    net = l2c.DiT(input_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=5)
    assert torch.equal(net(*make_batch(net)), torch.zeros(3, 8, 8, 8))


def test_keys_are_the_published_ones():
    net = l2c.DiT(input_size=8, hidden_size=32, depth=1, num_heads=2, num_classes=5)
    block = [f"blocks.0.{k}.{w}" for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for w in ("weight", "bias")]
    others = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "blocks.0.adaLN_modulation.1"]
    others += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    expected = {"pos_embed", "y_embedder.embedding_table.weight", *block}
    expected |= {f"{name}.{kind}" for name in others for kind in ("weight", "bias")}
    assert set(net.state_dict()) == expected
    assert net.y_embedder.embedding_table.weight.shape == (6, 32)


def test_names_labels_and_shapes(make_dit):
    net = make_dit(depth=2)
    assert net.layer_names == ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
    assert (net.num_layers, net.num_labels, net.conventions.null_label) == (4, 5, 5)
    assert net.input_shape == (4, 8, 8)


def test_bad_arguments_are_refused(make_dit, make_batch):
    with pytest.raises(ValueError, match="input_size 9 is not a multiple of patch_size 2"):
        l2c.DiT(input_size=9)
    net = make_dit()
    x, t, _ = make_batch(net)
    with pytest.raises(ValueError, match=r"needs labels: give y .* with 5 for no label"):
        net(x, t)
