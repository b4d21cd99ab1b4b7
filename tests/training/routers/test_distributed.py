"""The same global batch on one process, on two, and in accumulated parts gives the same routers.

Tolerance: 2e-3 in the logits after four steps of at most 0.2. Only the order of sums differs, but Adam divides by
the gradient's size, so the last bits of a tiny gradient show.
"""

import socket

import pytest
import torch

from l2c.data.share import Share
from l2c.data.step_sampler import NumberedBatchSampler, StepBatchSampler

TINY = [
    "model=dit_digits",  # with its weights: a random DiT predicts zero, and nothing would be learned
    "solver.num_evaluations=6",
    "data.batch_size=8",
    "router.learning_rate=0.2",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
]
TOLERANCE = 2e-3


@pytest.fixture
def train(call, call_process):
    """Return the function that trains in this process, or in several new ones, and reads what was learned."""

    def run(folder, *overrides, processes=1):
        arguments = ["train_router.py", *TINY, f"hydra.run.dir={folder}", *overrides]
        if processes == 1:
            done = call(*arguments)
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
            done = call_process(*launcher, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]

    return run


@pytest.mark.parametrize("data", ["digits", "noise"])
def test_routers_do_not_depend_on_the_number_of_processes(train, tmp_path, data):
    changes = [f"data={data}", "router=l2c" if data == "digits" else "router=budget", "router.learning_rate=0.2"]
    one = train(tmp_path / "one", *changes)
    two = train(tmp_path / "two", *changes, "trainer.devices=2", processes=2)
    parts = train(tmp_path / "parts", *changes, "trainer.accumulate_grad_batches=2")
    assert any(not torch.equal(logits, torch.full_like(logits, 2.0)) for logits in one.values())
    for other in (two, parts):
        assert other.keys() == one.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], atol=TOLERANCE, rtol=0)
    assert (tmp_path / "two" / "cache_graph.json").is_file()


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
