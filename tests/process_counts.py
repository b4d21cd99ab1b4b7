"""Router trainings on one process or several, from the same settings."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
def train(call: Callable, call_process: Callable) -> Callable[..., dict[str, Tensor]]:
    """Return the function that trains in this process, or in several new ones, and reads what was learned."""

    said: list[str] = []

    def run(folder: Path, *overrides: str, processes: int = 1) -> dict[str, Tensor]:
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
        said.append(done.stderr)
        return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]

    run.said = said  # type: ignore[attr-defined]
    return run


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of two trainings' logits."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
