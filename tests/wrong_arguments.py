"""Values that no argument may be, and what a refusal must look like."""

from __future__ import annotations

import math
import traceback
from pathlib import Path

import numpy as np
import torch

WRONG = {
    "an object": object(),
    "an array": np.array([1.5, 2.5]),
    "a tensor": torch.tensor([1.5, 2.5]),
    "bytes": b"ab",
    "nested": [[1.5]],
    "complex": 1j,
    "no numbers": torch.tensor(1, device="meta"),
    "nan": math.nan,
    "infinite": math.inf,
    "negative": -7,
    "huge": 10**31,
    "an empty list": [],
}


def check_sentence(error: BaseException, call: str) -> None:
    """Check that an error is one sentence of our own; `call` says of which call it is."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    message, line = str(error), raised.line or ""
    ours = "/l2c/" in raised.filename and line.startswith("raise")
    of_paths = Path(raised.filename).name.startswith("pathlib")  # Python says what a path must be
    assert ours or of_paths, f"{call}: {error!r} from {raised.filename}:{raised.lineno}"
    assert len(message) < 600, message
    assert "\n" not in message, message
