"""Errors of running out of memory: recognised, and explained in one sentence."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What libraries say where memory runs out, in errors of other kinds: torch (also of pinned memory, CUDA, HIP, MPS);
# cuBLAS and cuDNN; protobuf; Pillow; oneDNN, which has none for the code that it makes; the loader of libraries;
# Python itself, which lost its MemoryError. Compared in lower case.
WORDS = (
    *("out of memory", "out_of_memory", "outofmemory", "cudaerrormemoryallocation", "status_alloc_failed"),
    *("defaultcpuallocator", "can't allocate memory", "cannot allocate memory", "std::bad_alloc"),
    *("could not create a primitive", "failed to map segment", "error return without exception set"),
    "without setting an exception",
)
# What torch.save says where it closes a file that it could not write, for whatever reason.
UNWRITTEN = ("unexpected pos", "PytorchStreamWriter", "inline_container")
TELLING = (RuntimeError, SystemError, ImportError, TypeError)  # kinds of errors in which libraries say it
NO_MEMORY = "out of memory; free memory on this machine, or take a smaller model or fewer images at a time"

KEPT = {-3: ("MALLOC_MMAP_THRESHOLD_", 32 * 2**20), -1: ("MALLOC_TRIM_THRESHOLD_", 64 * 2**20)}  # by glibc's number


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB for the next ones: asking the system for their pages anew is slow.

    These are the values that glibc itself goes up to when it sees such blocks freed. Other C libraries, and settings
    of the environment, are left alone. Memory that is in use is not affected.
    """
    if sys.platform != "linux" or any(name in os.environ for name, _ in KEPT.values()):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for number, (_, value) in KEPT.items():
            library.mallopt(number, value)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the host or on a GPU.

    One that was raised from such an error is counted as one if it is of a kind in which libraries tell of it. An
    error that was raised while such an error was handled, and not from it, says something else: except for the one
    that `torch.save` raises where it closes what it could not write.
    """
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and all(one is not other for other in seen):  # contexts may be a circle
        seen.append(one)
        if _tells_of_memory(one):
            return True
        if not isinstance(one, TELLING):
            return False
        unwritten = isinstance(one, RuntimeError) and any(words in str(one) for words in UNWRITTEN)
        one = one.__cause__ or (one.__context__ if unwritten and not one.__suppress_context__ else None)
    return False


def _tells_of_memory(error: BaseException) -> bool:
    """Return whether an exception says by its own kind or words that memory ran out."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds:  # torch's, on a GPU
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    tells = isinstance(error, (*TELLING, OSError)) or "SafetensorError" in kinds
    return tells and any(words in str(error).lower() for words in WORDS)


def short_of_memory() -> bool:
    """Return whether this process gets no 16 MiB more: then an error of another kind may well be of that.

    Where memory runs out inside of Python's compiler or of omegaconf, they say that the syntax or a type is wrong.
    """
    try:
        return not bytearray(16 * 2**20)
    except MemoryError:
        return True


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
    except Exception as error:
        if isinstance(error, ExplainedMemoryError) or not out_of_memory(error):
            raise
        raise ExplainedMemoryError(sentence()) from error


def remedies(*ways: str | None) -> str:
    """Return the end of a sentence on memory: the settings that lower it; those that are None cannot be lowered."""
    said = " or ".join(filter(None, ways))
    return f"say {said}, or take a smaller model" if said else "take a smaller model, or free memory on this machine"


def halved(name: str, value: int) -> str | None:
    """Return the setting of half a value, `batch_size=4`; None where it is 1 already."""
    return f"{name}={value // 2}" if value > 1 else None
