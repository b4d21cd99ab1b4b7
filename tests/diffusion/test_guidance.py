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
