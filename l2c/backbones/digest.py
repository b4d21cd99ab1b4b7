"""Fingerprints of weights: a digest of all values, remembered with a cheap checksum that tells whether they changed.

The digest (SHA-256 of the weights as 32-bit floats) takes about a second per 400 million parameters; the checksum
reads the weights once at the speed of memory (about a tenth of that on a CPU, milliseconds on a GPU). It is a sum
over all bytes rather than a look at version counters, because writes through `.data` (merged adapters, quantising)
leave version counters and addresses as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

RUN = 64  # words of eight bytes


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes and values (as 32-bit floats) of a state dict, `sha256:...`.

    Quantised tensors that are made of plain ones are digested from those.

    Raises:
        ValueError: if a tensor has no values that can be read.

    """
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        for part, stored in _stored(name, value):
            digest.update(f"{part}{tuple(stored.shape)}".encode())
            digest.update(stored.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()}"


_KNOWN: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


def known_digest(module: nn.Module, weights: Mapping[str, Tensor] | None = None) -> str:
    """Return `weights_digest` of a module, worked out anew only where the checksum of its weights has changed.

    Args:
        module: the module.
        weights: those of it that count; None = its state dict.

    """
    weights = module.state_dict() if weights is None else weights
    checksum = weights_checksum(weights)
    if module not in _KNOWN or _KNOWN[module][1] != checksum:
        _KNOWN[module] = weights_digest(weights), checksum
    return _KNOWN[module][0]


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, types, shapes and bytes of a state dict; equal weights on two devices have one.

    Raises:
        ValueError: if a tensor has no values that can be read.

    """
    parts = [part for name, value in sorted(weights.items()) for part in _stored(name, value)]
    heads = [f"{name}{stored.dtype}{tuple(stored.shape)}" for name, stored in parts]
    sums: dict[torch.device, list[Tensor]] = {}
    for _, stored in parts:
        sums.setdefault(stored.device, []).append(_sum_of_bytes(stored.detach()))
    found = {device: iter(torch.stack(values).tolist()) for device, values in sums.items()}  # one transfer a device
    text = "".join(f"{head}{next(found[stored.device])}" for head, (_, stored) in zip(heads, parts, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def _sum_of_bytes(stored: Tensor) -> Tensor:
    """Return a sum over a tensor's bytes as a 0-d integer, eight at a time; it wraps around.

    Each run of 512 bytes counts by a factor of its own, so that values which change places (heads, channels) show.
    """
    flat = stored.contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() // (8 * RUN) * (8 * RUN)
    start = flat[:whole]
    if start.storage_offset() % 8:  # words must lie at multiples of their size
        start = start.clone()
    runs = start.view(torch.int64).view(-1, RUN).sum(dim=1)
    rest = flat[whole:].to(torch.int64)
    return _numbered_sum(runs) + _numbered_sum(rest)


def _numbered_sum(values: Tensor) -> Tensor:
    """Return the sum of (N,) integers, the first one once, the next three times, and so on."""
    return (values * (2 * torch.arange(len(values), device=values.device) + 1)).sum()


def _stored(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that hold a weight's values, each with its name."""
    if not isinstance(value, Tensor):  # extra state of some modules
        yield f"{name}={value!r}", torch.empty(0)
        return
    if hasattr(value, "__tensor_flatten__"):
        inner, context = value.__tensor_flatten__()
        yield f"{name}:{type(value).__name__}{context!r}", torch.empty(0)
        for attribute in inner:
            yield from _stored(f"{name}.{attribute}", getattr(value, attribute))
        return
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        kind = "on the meta device" if value.is_meta else f"of the kind {value.dtype}, {value.layout}"
        raise ValueError(
            f"the weight {name} is {kind}, so that its values cannot be read for a fingerprint; load plain weights, "
            "or use a graph that is bound to no weights (any_weights=True)"
        )
    yield name, torch.view_as_real(value) if value.is_complex() else value
