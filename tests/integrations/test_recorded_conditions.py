"""Conditions of prompts in one table: what prompts share, and which may run in one batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from diffusers import DDIMScheduler

from l2c.integrations.diffusers.recorded.call import RecordedCall
from l2c.integrations.diffusers.recorded.conditions import (
    ALONE,
    SHARED,
    differ_in_length,
    digest_of,
    groups_of,
    one_for_all,
    places_of,
    rows_of,
    tabled,
)
from l2c.integrations.diffusers.recorded.encoders import encoding_once
from l2c.integrations.diffusers.recorded.guided import moved_on
from l2c.integrations.diffusers.recorded.recording import SCALE, _of_batches
from l2c.integrations.diffusers.recorded.steps import RecordedStep, calls_of, distance
from l2c.integrations.diffusers.timesteps import conditions_of, time_argument


def call_of(*lengths):
    """Return what a pipeline gives its model for prompts: padded texts, and positions of tokens for all of them."""
    longest = max(lengths)
    text = torch.stack([torch.full((longest, 2), float(length)) for length in lengths])
    return {"text": text, "positions": torch.arange(longest), "size": longest, "scale": 1.0, "cache": object()}


def test_what_a_batch_shares_may_differ_from_prompt_to_prompt():
    table = tabled([call_of(3), call_of(2), call_of(3)], places_of(call_of(3), call_of(3, 3)))
    assert differ_in_length(table)
    together, alone = groups_of(table, [0, 1, 2]).values()
    assert (together, alone) == ([0, 2], [1])
    for prompts, length in (([0, 2], 3), ([1], 2)):
        given = rows_of(table, torch.tensor(prompts))
        assert given["positions"].tolist() == list(range(length))
        assert (given["size"], given["scale"]) == (length, 1.0)
        assert given["text"].shape == (len(prompts), length, 2)


def test_what_all_prompts_share_keeps_no_two_apart():
    table = tabled([call_of(3), call_of(3)], places_of(call_of(3), call_of(3, 3)))
    assert not differ_in_length(table)
    assert groups_of(table, [0, 1]).popitem()[1] == [0, 1]


def test_prompts_that_run_alone_are_told_apart_wherever_they_are_in_a_batch():
    table = tabled([{"text": torch.zeros(1, n, 2)} for n in (3, 2)], ALONE)
    assert list(groups_of(table, [0, 1, 1]).values()) == [[0], [1], [2]]
    (first,), (second,) = groups_of(table, [0]), groups_of(table, [1])
    assert first != second  # lengths of streams are remembered by these


class Needing(torch.nn.Module):
    def forward(self, sample, timestep, text, mask=None):
        """Take a text, which may be None but must be given (MusicLDM)."""


def test_arguments_that_must_be_given_are_recorded_though_they_are_none():
    given = {"timestep": torch.tensor([3.0]), "text": None, "mask": None}
    call = RecordedCall.of(Needing(), (torch.zeros(1, 3),), given)
    assert call.conditions == {"text": None}
    assert set(call.arguments(call.x, torch.tensor([2.0]), call.conditions)) == {"sample", "timestep", "text"}


def masked(*lengths):
    """Return what a pipeline gives its model for prompts: a mask where one of them is padded alone."""
    padded = len(set(lengths)) > 1 or lengths[0] < 3
    mask = torch.tensor([[place < length for place in range(3)] for length in lengths])
    return {"text": torch.ones(len(lengths), 3, 2), **({"mask": mask} if padded else {})}


@pytest.mark.parametrize("first", [2, 3])
def test_a_condition_that_some_prompts_have_is_given_to_these_alone(first):
    prompts = [first, 3, 2, 3]
    table = tabled([masked(length) for length in prompts], places_of(masked(first), masked(first, first)))
    for places in groups_of(table, range(4)).values():
        given = rows_of(table, torch.tensor(places))
        lengths = [prompts[place] for place in places]
        assert len(given["text"]) == len(places)
        assert (given["mask"] is None) == (lengths[0] == 3)
        assert len(set(lengths)) == 1
        assert lengths[0] == 3 or given["mask"].sum(1).tolist() == lengths
    nested = tabled([{"more": {"mask": torch.ones(1, 2)}}, {"text": 1}], {"more": {"mask": 0}})
    assert rows_of(nested, torch.tensor([1])) == {"more": None, "text": 1}
    assert len(groups_of(nested, [0, 1])) == 2


def test_a_condition_of_one_row_for_two_prompts_is_seen_in_the_guided_call():
    one, two = {"text": torch.ones(1, 2), "picture": torch.ones(1, 4)}, torch.ones(2, 2)
    shared = places_of(one, {"text": two, "picture": one["picture"]})
    own = places_of(one, {"text": two, "picture": torch.ones(2, 4)})
    assert one_for_all(shared, own)
    assert not one_for_all(own, shared)
    assert not one_for_all(own, own)
    assert one_for_all({"in": [shared]}, {"in": [own]})


class Described(torch.nn.Module):
    def forward(self, input_ids, position_ids, und_len, vision_tokens, timestep):
        """Take ids of a text before what is noisy (Cosmos 3)."""


def test_what_is_noisy_may_come_after_the_ids_of_a_text():
    ids, places, noisy = torch.arange(2), torch.rand(3, 5), [torch.rand(4, 1, 2, 2)]
    given = {"position_ids": places, "und_len": 2, "vision_tokens": noisy, "timestep": torch.full((4,), 3.0)}
    call = RecordedCall.of(Described(), (ids,), given)
    assert (call.noisy, call.listed, call.x.shape) == ("vision_tokens", True, (1, 4, 1, 2, 2))
    assert set(call.conditions) == {"input_ids", "position_ids", "und_len"}
    asked = call.arguments(call.x + 1, torch.tensor([2.0]), call.conditions)
    assert asked["timestep"].tolist() == [2.0] * 4
    torch.testing.assert_close(asked["vision_tokens"], [noisy[0] + 1])
    assert set(conditions_of(Described(), (ids,), given)) == set(call.conditions)


def test_a_pipeline_that_looks_whether_it_is_guided_encodes_for_each():
    class Encoding:
        vae, _guidance_scale = None, 1.0

        def encode_prompt(self, prompt):
            return prompt, self._guidance_scale

    pipe = Encoding()
    with encoding_once(pipe):
        first = pipe.encode_prompt("a cat")
        assert pipe.encode_prompt("a cat") is first
        pipe._guidance_scale = 5.0
        assert pipe.encode_prompt("a cat") == ("a cat", 5.0)


class Kept:
    """Keys and values of pictures, which a model reads or passes over."""

    def __init__(self, mode, size=2):
        self.mode, self.kept = mode, [torch.ones(size)]


def test_objects_are_shared_where_they_hold_the_same():
    def table(*kept):
        return tabled([{"kept": one} for one in kept], {"kept": SHARED})

    assert isinstance(table(Kept("read"), Kept("read"))["kept"], Kept)
    for other in (Kept("skip"), Kept("read", size=3)):
        parts = table(Kept("read"), Kept("read"), other)
        assert list(groups_of(parts, [0, 1, 2]).values()) == [[0, 1], [2]]
        assert rows_of(parts, torch.tensor([2]))["kept"] is other
    assert digest_of(table(Kept("read"))) == digest_of(table(Kept("read"))) != digest_of(table(Kept("skip")))


def test_conditions_that_are_nested_too_deep_are_one_sentence():
    deep, around = 1, {}
    for _ in range(5000):
        deep = [deep]
    around["itself"] = around
    kept = Kept("read")
    kept.itself = kept
    assert time_argument(around) is None
    for given in (deep, around, kept):
        with pytest.raises(ValueError, match=r"^the pipeline gives its model 'text', whose members lie 64"):
            RecordedCall.of(Needing(), (torch.zeros(1, 3),), {"timestep": torch.tensor([3.0]), "text": given})


def test_arrays_are_told_apart_by_their_values():
    rows = [{"sizes": np.arange(2000) == place} for place in (1000, 1001, 1000)]
    table = tabled(rows, {"sizes": SHARED})
    assert list(groups_of(table, [0, 1, 2]).values()) == [[0, 2], [1]]
    assert digest_of(rows[0]) == digest_of(rows[2]) != digest_of(rows[1])


class Branches:
    """A pipeline that runs its branches apart and steps its scheduler at times `late` after the model's."""

    def __init__(self, late):
        self.scheduler, self.late, self.model = DDIMScheduler(), late, Sums()

    def __call__(self, texts):
        self.scheduler.set_timesteps(4)
        x = torch.ones(1, 3)
        for t in self.scheduler.timesteps:
            one, other = (self.model(x, t, text=text) for text in texts)
            x = self.scheduler.step(one - other, t - self.late, x, return_dict=False)[0]


@pytest.mark.parametrize("late", [0, 1])
def test_a_guided_step_is_repeated_where_its_time_is_one_of_the_schedulers(late):
    pipe = Branches(late)
    step = moved_on(pipe, pipe.model, texts=[torch.ones(1, 1), torch.zeros(1, 1)])
    assert (step is None) == bool(late)
    if step is not None:
        assert torch.equal(step.onward(step.predictions[0] - step.predictions[1]), step.end)


def test_forwards_of_a_model_that_is_called_twice_a_step_are_counted_once():
    inner = torch.nn.Identity()
    model = torch.nn.Sequential(inner, torch.nn.Identity(), inner)
    once = calls_of(model, lambda: model(torch.zeros(1)))
    assert once == {"": 1, "0": 2, "1": 1}
    assert calls_of(model, lambda: model(model(torch.zeros(1)))) == once


def paired(prompts):
    """Return the call of a pipeline whose batch holds the unconditional branches of prompts first."""
    text = torch.tensor([[0.0]] * len(prompts) + [[prompt] for prompt in prompts])
    return RecordedCall(torch.zeros(2 * len(prompts), 3), 1.0, {"text": text}, "x", ("t",), listed=False)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_branches_that_are_in_one_batch_at_any_scale_are_recorded_apart(sign):
    uncond, cond = torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 1.0, 0.0]]])
    plain = RecordedStep(calls=[paired([1.0])], predictions=[torch.cat([uncond, cond])], taken=sign * cond)
    guided = replace(plain, taken=sign * (uncond + SCALE * (cond - uncond)))
    calls, model = [paired([1.0]), paired([2.0])], torch.nn.Identity()
    found = _of_batches(model, plain, guided, calls, {"text": 0}, "cfg")
    assert [call.conditions["text"].item() for call in found.calls] == [
        1.0,
        2.0,
        0.0,
    ]  # the unconditional one is last
    assert (found.sign, found.guidance) == (sign, "cfg")
    assert _of_batches(model, replace(plain, taken=cond + 1), guided, calls, {"text": 0}, "cfg") is None
    assert _of_batches(model, plain, RecordedStep(), calls, {"text": 0}, "cfg") is None


class Sums(torch.nn.Module):
    """Predicts the sum of x (N, 3) and a text (N, 1), whose rows it may mix."""

    def __init__(self, mixed=0.0):
        super().__init__()
        self.mixed = mixed

    def forward(self, x, t, text):
        return x + text + self.mixed * text.sum()


def of_three(prompt):
    text = torch.tensor([[0.0], [0.5], [prompt]])
    return RecordedCall(torch.ones(3, 3), 1.0, {"text": text}, "x", ("t",), listed=False)


def test_branches_of_a_pipeline_that_takes_one_prompt_a_call_are_told_apart_by_their_rows():
    calls = [of_three(1.0), of_three(2.0)]
    predictions = Sums()(calls[0].x, 1.0, calls[0].conditions["text"])
    uncond, pictures, cond = predictions.chunk(3)
    plain = RecordedStep(calls=calls[:1], predictions=[predictions], taken=cond)
    guided = replace(plain, taken=pictures + SCALE * (cond - pictures))
    found = _of_batches(Sums(), plain, guided, calls, ALONE, "cfg")
    assert [call.conditions["text"].item() for call in found.calls] == [1.0, 2.0, 0.5]
    assert (found.places, found.guidance) == ({"text": 0}, "cfg")
    both = replace(plain, taken=uncond + SCALE * (cond - pictures) + 3 * (pictures - uncond))
    found = _of_batches(Sums(), plain, both, calls, ALONE, "cfg")
    assert [call.conditions["text"].item() for call in found.calls] == [1.0, 2.0, 0.0]  # the farthest one
    assert found.guidance is None
    assert _of_batches(Sums(mixed=0.1), plain, guided, calls, ALONE, "cfg") is None  # rows do not run alone


def test_a_condition_that_guidance_brings_is_not_left_out_of_the_unconditional_branch():
    """A mask inside a dictionary, of prompts of two lengths in one batch, was."""
    alone = replace(paired([1.0]), x=torch.zeros(1, 3), conditions={"text": torch.ones(1, 1), "more": {}})
    both = paired([1.0])
    step = RecordedStep(predictions=[torch.zeros(2, 3)])

    def found(more):
        guided = replace(step, calls=[replace(both, conditions={**both.conditions, "more": more})])
        return guided.unconditional(alone, {"text": 0, "more": {}})

    assert found({})[0].conditions["text"].item() == 0.0
    assert found({"mask": torch.ones(2, 1)}) is None


def test_complex_tables_are_apart_by_both_parts():
    ours, theirs = torch.tensor([1 + 2j]), torch.tensor([1 + 5j])
    assert distance({"rotary": ours}, {"rotary": theirs}) == 3
