"""Both rules of classifier-free guidance, by hand."""

from __future__ import annotations

import pytest
import torch

from l2c.diffusion import Guidance

COND = torch.arange(1.0, 9.0).reshape(1, 8, 1, 1)
UNCOND = torch.full((1, 8, 1, 1), 2.0)


def test_dit_guides_three_channels_and_leaves_the_others_conditional():
    cond, uncond = COND.clone(), UNCOND.clone()
    got = Guidance("dit", 4.0).combine(cond, uncond).flatten().tolist()
    assert got == [2 + 4 * (1 - 2), 2 + 4 * (2 - 2), 2 + 4 * (3 - 2), 4, 5, 6, 7, 8]
    assert torch.equal(cond, COND)
    assert torch.equal(uncond, UNCOND)


def test_uvit_guides_all_channels_from_the_conditional_output():
    got = Guidance("uvit", 0.5).combine(COND, UNCOND).flatten().tolist()
    assert got == [c + 0.5 * (c - 2) for c in range(1, 9)]


def test_cfg_guides_all_channels_from_the_unconditional_output():
    got = Guidance("cfg", 4.0).combine(COND, UNCOND).flatten().tolist()
    assert got == [2 + 4 * (c - 2) for c in range(1, 9)]


def test_cfg_normed_has_the_direction_of_cfg_and_the_norm_of_cond():
    normed, plain = (Guidance(mode, 4.0).combine(COND, UNCOND) for mode in ("cfg_normed", "cfg"))
    torch.testing.assert_close(normed.norm(dim=-1), COND.norm(dim=-1))
    torch.testing.assert_close(normed / normed.norm(dim=-1, keepdim=True), plain / plain.norm(dim=-1, keepdim=True))


def test_conventions_agree_up_to_one():
    """DiT's scale s is U-ViT's s - 1, on the channels that DiT guides."""
    dit, uvit = Guidance("dit", 1.5).combine(COND, UNCOND), Guidance("uvit", 0.5).combine(COND, UNCOND)
    torch.testing.assert_close(dit[:, :3], uvit[:, :3])


@pytest.mark.parametrize(("mode", "neutral"), [("dit", 1.0), ("uvit", 0.0), ("cfg", 1.0)])
def test_neutral_scale_switches_it_off(mode, neutral):
    assert not Guidance(mode).active
    assert not Guidance(mode, neutral).active
    assert Guidance(mode, 1 - neutral).active
    torch.testing.assert_close(Guidance(mode, neutral).combine(COND, UNCOND), COND)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown guidance 'apg'; known are dit, uvit, cfg"):
        Guidance("apg", 1.0)


@pytest.mark.parametrize(("mode", "scale"), [("dit", 4.0), ("uvit", 0.5), ("cfg", 4.0), ("dit", 1.0), ("uvit", None)])
def test_both_branches_are_one_batch(mode, scale):
    """Bit for bit what two separate branches, written out plainly, give."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 4, 2, 2, generator=generator), torch.tensor([0, 2, 1])

    def network(x, y):
        return torch.cat([x * (1 + y.view(-1, 1, 1, 1)), x.sin()], dim=1)

    guidance = Guidance(mode, scale)
    got = guidance.merge(network(guidance.inputs(x), guidance.labels(y, 5)))
    cond, uncond = network(x, y), network(x, torch.full((3,), 5))
    plain = {
        "dit": lambda: torch.cat([uncond[:, :3] + scale * (cond[:, :3] - uncond[:, :3]), cond[:, 3:]], dim=1),
        "uvit": lambda: cond + scale * (cond - uncond),
        "cfg": lambda: uncond + scale * (cond - uncond),
    }
    assert torch.equal(got, plain[mode]() if guidance.active else cond)
    assert len(guidance.inputs(x)) == guidance.rows(3) == (6 if guidance.active else 3)


def test_a_network_without_labels_is_given_none():
    assert Guidance("uvit").labels(None, None) is None
    assert Guidance("embedded", 4.0).labels(torch.tensor([1]), None).tolist() == [1]
    with pytest.raises(AssertionError, match="guidance needs labels"):
        Guidance("dit", 4.0).labels(None, 5)


def test_guidance_is_said_in_words():
    said = [
        Guidance(mode, scale).described
        for mode, scale in (("dit", 4.5), ("dit", 1.0), ("cfg", None), ("embedded", 1.0))
    ]
    assert said == ["4.5", "none", "none", "1"]  # embedded guidance has no scale at which it is off
