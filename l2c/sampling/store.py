"""Storage of a trajectory's layer outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from l2c.io.locks import OwnLock
from l2c.io.tensors import usable_device


class Peak:
    """The most bytes that any of some stores has kept at once, whole storages counted."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = OwnLock()

    def take(self, count: int) -> None:
        """Record the bytes that a store keeps now."""
        if count > self.bytes:
            with self._lock:
                self.bytes = max(self.bytes, count)


class LayerStore:
    """Slots for layer outputs, held as they are or as copies of another kind.

    An output that is kept as it was computed is held by reference: it costs no copy, and its memory goes back to
    torch when it is dropped. Copies go into buffers that are allocated once and serve every later trajectory.

    Args:
        dtype: type of stored copies; None = as computed.
        device: device of stored copies, e.g. `cpu` (pinned memory beside a GPU); None = where computed.
        peak: shared with other stores; None = its own.

    Raises:
        ValueError: if numbers of that type, or on that device, cannot be kept.

    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        peak: Peak | None = None,
    ) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"cache_dtype must be a type of floating-point numbers, e.g. bf16, got {dtype}")
        self.device = None if device is None else usable_device(device, "cache_device")
        self.dtype = dtype
        self._held: dict[int, Tensor] = {}
        self._buffers: dict[int, Tensor] = {}
        self._bytes = 0
        self._peak = peak or Peak()

    def another(self) -> LayerStore:
        """Return an empty store of the same kind, whose peak is its own."""
        return LayerStore(self.dtype, self.device)

    def put(self, slot: int, output: Tensor) -> None:
        """Keep an output (N, T, D) in a slot."""
        dtype, device = self.dtype or output.dtype, self.device or output.device
        if (dtype, device) == (output.dtype, output.device):
            self._hold(slot, output)
            return
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.shape != output.shape:
            pinned = device.type == "cpu" and output.is_cuda
            buffer = torch.empty(output.shape, dtype=dtype, device=device, pin_memory=pinned)
            self._buffers[slot] = buffer
        buffer.copy_(output, non_blocking=True)
        self._hold(slot, buffer)

    def _hold(self, slot: int, output: Tensor) -> None:
        self._held[slot] = output
        self._bytes += output.untyped_storage().nbytes()
        self._peak.take(self._bytes)

    def get(self, slot: int, like: Tensor) -> Tensor:
        """Return the output in a slot, in dtype and device of another tensor."""
        return self._held[slot].to(like.device, like.dtype, non_blocking=True)

    def drop(self, slot: int) -> None:
        """Free a slot."""
        self._bytes -= self._held.pop(slot).untyped_storage().nbytes()

    def clear(self) -> None:
        """Free all slots; buffers stay for the next trajectory."""
        self._held.clear()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Memory of what is kept now, in bytes."""
        return self._bytes


class Stores:
    """Stores of one kind, lent to one trajectory each; a copy or a pickle begins without any.

    Args:
        dtype: see `LayerStore`.
        device: likewise.

    Raises:
        ValueError: if numbers of that type, or on that device, cannot be kept.

    """

    def __init__(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        first = LayerStore(dtype, device)
        self.dtype, self.device = first.dtype, first.device
        self._peak = Peak()
        self._idle = [self.new()]
        self._lock = OwnLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Stores, (self.dtype, self.device)

    def new(self) -> LayerStore:
        """Return a store that is not lent to others."""
        return LayerStore(self.dtype, self.device, self._peak)

    @property
    def peak_bytes(self) -> int:
        """The most that any trajectory has kept at once."""
        return self._peak.bytes

    @contextmanager
    def lent(self) -> Iterator[LayerStore]:
        """Lend a store, with the buffers of an earlier trajectory, and take it back empty."""
        with self._lock:
            store = self._idle.pop() if self._idle else self.new()
        try:
            yield store
        finally:
            store.clear()
            with self._lock:
                self._idle.append(store)
