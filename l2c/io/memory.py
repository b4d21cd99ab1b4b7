"""Errors of running out of memory: recognised, and explained in one sentence."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Torch raises RuntimeErrors of these words where memory of the host runs out, pinned memory included; the last one is
# oneDNN's, which has no memory for the code that it makes.
WORDS = (
    *("DefaultCPUAllocator", "CUDA error: out of memory", "can't allocate memory", "std::bad_alloc"),
    "could not create a primitive",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the host or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


class ExplainedMemoryError(MemoryError):
    """Memory ran out; the message names the operation and the settings that lower its memory."""


@contextmanager
def memory_explained(sentence: Callable[[], str]) -> Iterator[None]:
    """Replace an out-of-memory error by a MemoryError with a given sentence; other errors pass.

    With nested contexts the innermost message is used.

    Args:
        sentence: returns the sentence; called only after memory ran out.

    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, ExplainedMemoryError) or not out_of_memory(error):
            raise
        raise ExplainedMemoryError(sentence()) from error
