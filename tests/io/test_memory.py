"""Errors of running out of memory, whoever raises them, and what is said of them."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from l2c.io import memory
from l2c.io.memory import ExplainedMemoryError, halved, memory_explained, out_of_memory, remedies


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (FileNotFoundError("a"), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (SystemError("error return without exception set\n    full_key: seed"), True),
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (TypeError("Couldn't build proto file into descriptor pool: out of memory"), True),
        (SystemError("bad argument to internal function"), False),
        (ValueError("out of memory"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (type("Subclass", (torch.OutOfMemoryError,), {})(""), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.1 GB, max allowed: 18.1 GB)"), True),
        (RuntimeError("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"), True),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"), True),
        (SafetensorError('IoError(Os { code: 12, kind: OutOfMemory, message: "Cannot allocate memory" })'), True),
        (SafetensorError("Error while deserializing header: header too small"), False),
        (OSError("out of memory when reading image file"), True),  # Pillow's
        (OSError("image file is truncated"), False),
    ],
)
def test_what_is_running_out_of_memory(error, is_one):
    assert out_of_memory(error) is is_one
    with pytest.raises(ExplainedMemoryError if is_one else type(error)), memory_explained(lambda: "said"):
        raise error


UNWRITTEN = "[enforce fail at inline_container.cc:672] . unexpected pos 2 vs 1"


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        (MemoryError(), RuntimeError(UNWRITTEN), True),
        (KeyError("a"), RuntimeError("unexpected pos"), False),
        (OSError(errno.ENOSPC, "No space left on device"), RuntimeError(UNWRITTEN), False),
        (MemoryError(), ValueError("a sentence of our own"), False),
        (MemoryError(), TypeError("unsupported operand type(s)"), False),
        (MemoryError(), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), ImportError("no module"), False),
    ],
)
def test_an_error_while_one_of_memory_is_handled_is_another_except_where_a_file_is_closed(first, second, is_one):
    for suppressed in (False, True):
        second.__cause__, second.__context__, second.__suppress_context__ = None, first, suppressed
        assert out_of_memory(second) is (is_one and not suppressed)


def test_an_error_that_was_raised_from_running_out_of_memory_is_one():
    compiling = RuntimeError("backend='inductor' raised")
    compiling.__cause__ = SystemError("in between")
    compiling.__cause__.__cause__ = MemoryError()
    assert out_of_memory(compiling)
    sentence = ValueError("a sentence of our own")
    sentence.__cause__ = MemoryError()
    assert not out_of_memory(sentence)


def test_a_circle_of_errors_ends():
    one, other = RuntimeError(UNWRITTEN), RuntimeError(UNWRITTEN)
    one.__context__, other.__context__ = other, one
    assert not out_of_memory(one)
    one.__cause__, other.__cause__ = other, one
    assert not out_of_memory(one)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_process_is_short_of_memory_where_its_limit_is_near(call_process):
    lines = """
import resource
from pathlib import Path
from l2c.io.memory import short_of_memory
assert not short_of_memory()
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 8 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert short_of_memory()
"""
    done = call_process("-c", lines)
    assert done.returncode == 0, done.stderr


def test_the_innermost_sentence_on_memory_counts():
    with (
        pytest.raises(ExplainedMemoryError, match="inner"),
        memory_explained(lambda: "outer"),
        memory_explained(lambda: "inner"),
    ):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")


def test_only_what_can_be_lowered_is_named():
    assert halved("batch_size", 9) == "batch_size=4"
    assert remedies(halved("batch_size", 9), None, "precision=bf16") == (
        "say batch_size=4 or precision=bf16, or take a smaller model"
    )
    assert remedies(halved("batch_size", 1)) == "take a smaller model, or free memory on this machine"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize("own", [False, True])
def test_glibc_keeps_freed_memory_unless_told_otherwise(own, monkeypatch):
    asked = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *a: asked.append(a)))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if own:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    memory.keep_freed_memory()
    assert asked == ([] if own else [(-3, 32 * 2**20), (-1, 64 * 2**20)])


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    memory.keep_freed_memory()
