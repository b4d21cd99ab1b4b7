"""The same global batch on one process, on two, and in accumulated parts gives the same routers.

Tolerance: 2e-3 in the logits after four steps of at most 0.2. Only the order of sums differs, but Adam divides by
the gradient's size, so the last bits of a tiny gradient show.
"""

import pytest
import torch
from process_counts import TOLERANCE, far, train  # noqa: F401 - a fixture

from l2c.data.share import Share
from l2c.data.step_sampler import NumberedBatchSampler, StepBatchSampler


@pytest.mark.parametrize("data", ["digits", "noise"])
def test_routers_do_not_depend_on_the_number_of_processes(train, tmp_path, times, data):  # noqa: F811
    times(data == "noise", 1)
    changes = [f"data={data}", "router=l2c" if data == "digits" else "router=budget", "router.learning_rate=0.2"]
    one = train(tmp_path / "one", *changes)
    two = train(tmp_path / "two", *changes, "trainer.devices=2", processes=2)
    parts = train(tmp_path / "parts", *changes, "trainer.accumulate_grad_batches=2")
    assert any(not torch.equal(logits, torch.full_like(logits, 2.0)) for logits in one.values())
    assert max(far(one, two), far(one, parts)) < TOLERANCE
    assert (tmp_path / "two" / "cache_graph.json").is_file()
    longer, resume = (*changes, "trainer.max_steps=6"), "resume=auto"  # on one process what two began
    assert far(train(tmp_path / "two", *longer, resume), train(tmp_path / "whole", *longer)) < TOLERANCE
    assert "was shared by 2 processes in 1 part each so far, by 1 process in 1 part each from here" in train.said[-2]
    assert "was shared" not in train.said[-1]


def test_parts_make_up_the_batch():
    for kind in (StepBatchSampler, NumberedBatchSampler):
        whole = iter(kind(10, 6, seed=1, start_step=2))
        halves = [iter(kind(10, 6, seed=1, start_step=2, parts=[Share(i, 2)])) for i in range(2)]
        turns = iter(kind(10, 6, seed=1, start_step=2, parts=[Share(0, 2), Share(1, 2)]))
        for _ in range(3):
            batch = next(whole)
            assert next(halves[0]) + next(halves[1]) == batch
            assert next(turns) + next(turns) == batch


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="cannot be split into 4 equal ones; take a multiple of 4"):
        StepBatchSampler(10, 6, seed=0, parts=[Share(1, 4)])
