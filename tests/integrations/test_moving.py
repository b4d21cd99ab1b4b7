"""Which modules run on what moves from evaluation to evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.moving import moving_calls, moving_runs


class Told(nn.Module):
    """Adds a text, told twice, one of its parts and the time to what is noisy."""

    def __init__(self):
        super().__init__()
        self.on_text, self.on_part, self.on_time, self.on_all, self.unused = (nn.Identity() for _ in range(5))

    def forward(self, x, timestep, text, rotated):
        text = self.on_text(self.on_text(text))
        part = self.on_part(rotated * text.sum())
        return self.on_all(x + text) + self.on_time(timestep.sum()) + part.real.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("t", [0.0, 999.0])
def test_what_depends_on_the_noisy_input_or_the_time_moves(dtype, t):
    model, state = Told(), torch.get_rng_state()
    given = {"text": torch.randn(1, 3).to(dtype), "rotated": torch.randn(3, dtype=torch.complex64)}
    call = RecordedCall.of(model, (torch.randn(1, 3).to(dtype), torch.tensor([t])), given)
    assert moving_calls(model, moving_runs(call)) == {"": 1, "on_all": 1, "on_time": 1}
    assert moving_calls(model, [lambda: model(call.x, torch.tensor([t]), **given)] * 2) == {}
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.set_rng_state(state)


class Once(nn.Module):
    """Calls a part once more where the time is small, with the same text."""

    def __init__(self):
        super().__init__()
        self.part = nn.Identity()

    def forward(self, x, timestep, text):
        for _ in range(1 if timestep > 0.9 else 2):
            x = x + self.part(text)
        return x


def test_what_runs_another_number_of_times_moves():
    call = RecordedCall.of(Once(), (torch.randn(1, 3), torch.tensor([1.0])), {"text": torch.ones(1, 3)})
    assert moving_calls(call.model, moving_runs(call)) == {"": 1, "part": 1}


class Parts(nn.Module):
    """Runs a part at early times alone, one at late times alone, and parts on the order of what is noisy."""

    def __init__(self):
        super().__init__()
        self.early, self.late, self.on_order, self.on_place = (nn.Identity() for _ in range(4))

    def forward(self, x, timestep):
        x = x + (self.early if timestep > 500 else self.late)(x)
        order = self.on_order(x.argsort(-1))
        place = self.on_place(nn.functional.one_hot(order, x.shape[-1]).float())
        return x + order + place.sum(-1)


def test_what_does_not_run_at_all_times_is_left_out_and_another_order_is_another_input():
    call = RecordedCall.of(Parts(), (torch.randn(1, 64), torch.tensor([999.0])), {})
    assert moving_calls(call.model, moving_runs(call)) == {"": 1, "on_order": 1, "on_place": 1}
