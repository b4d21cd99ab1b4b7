"""What running out of memory looks like, and how it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Torch raises RuntimeErrors of these words where memory of the host runs out, pinned memory included.
WORDS = ("DefaultCPUAllocator", "CUDA error: out of memory", "can't allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the host or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


class ExplainedMemoryError(MemoryError):
    """Memory ran out; the message says in what and what lowers it."""


@contextmanager
def memory_explained(sentence: Callable[[], str]) -> Iterator[None]:
    """Raise a MemoryError with a sentence of one's own where memory runs out within; other errors pass.

    Of nested ones the innermost speaks: it knows best what was done.

    Args:
        sentence: returns it; called where memory ran out only.

    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, ExplainedMemoryError) or not out_of_memory(error):
            raise
        raise ExplainedMemoryError(sentence()) from error
