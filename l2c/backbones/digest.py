"""Fingerprints of weights: a digest of all values, remembered with a cheap checksum that tells whether they changed.

The digest (SHA-256 of the weights as 32-bit floats) takes about a second per 400 million parameters; the checksum
reads the weights once at the speed of memory (about a tenth of that on a CPU, milliseconds on a GPU). It is a sum
over all bytes rather than a look at version counters, because writes through `.data` (merged adapters, quantising)
leave version counters and addresses as they are.

Both are too slow to run before each trajectory. A `WeightsWatch` compares version counters and a few values of each
weight, and asks for the checksum only if one of them differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from l2c.backbones.forwards import without_wrapper
from l2c.io.tensors import digest_of_tensors, is_plain

RUN = 64  # words of eight bytes
SAMPLED = 8  # values that are looked at of a weight
SWITCHES = "digested_switches"  # attribute of a class: names of numbers that its modules hold, with their defaults

Facts = dict[Hashable, Any]


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes and values (as 32-bit floats) of a state dict, `sha256:...`.

    Names are those without the part that `torch.compile(module)` puts between, so that compiling changes no digest.
    Quantised tensors that are made of plain ones are digested from those, sharded ones (FSDP2) whole: all processes
    must ask for them.

    Raises:
        ValueError: if a tensor has no values that can be read.

    """
    named = sorted((without_wrapper(name), value) for name, value in weights.items())
    return digest_of_tensors(part for name, value in named for part in _stored(name, value))


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
    heads: list[tuple[str, torch.device]] = []
    sums: dict[torch.device, list[Tensor]] = {}
    for name, value in sorted(weights.items()):
        for part, stored in _stored(name, value):
            heads.append((f"{part}{stored.dtype}{tuple(stored.shape)}", stored.device))
            sums.setdefault(stored.device, []).append(_sum_of_bytes(stored.detach()))
    found = {device: iter(torch.stack(values).tolist()) for device, values in sums.items()}  # one transfer a device
    text = "".join(f"{head}{next(found[device])}" for head, device in heads)
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
    if hasattr(value, "full_tensor"):  # sharded: gathered from all processes, each of which asks
        value = value.full_tensor()
    if hasattr(value, "__tensor_flatten__"):
        inner, context = value.__tensor_flatten__()
        yield f"{name}:{type(value).__name__}{context!r}", torch.empty(0)
        for attribute in inner:
            yield from _stored(f"{name}.{attribute}", getattr(value, attribute))
        return
    if not is_plain(value):
        kind = "on the meta device" if value.is_meta else f"of the kind {value.dtype}, {value.layout}"
        raise ValueError(
            f"the weight {name} is {kind}, so that its values cannot be read for a fingerprint; load plain weights, "
            "or use a graph that is bound to no weights (any_weights=True)"
        )
    yield name, torch.view_as_real(value) if value.is_complex() else value


class WeightsWatch:
    """Notices between trajectories that a model's weights have changed since they were checked.

    Facts that are cheap to find are compared; if one differs, the check is made again. A tensor that is written
    through `.data` is noticed where one of 8 values, spread from its first to its last, has changed: merged adapters
    are, a write to few of its values can be missed. Changed code (hooks, replaced forwards) is not looked at. Sharded
    weights (FSDP2) are not watched: the check needs all processes, but each process sees only its own shards and
    could ask for it alone.

    Args:
        model: the model.
        check: refuses weights by a ValueError.
        since: what was done when they were checked, words of the message.
        facts: returns facts about a model's weights; those that two looks have in common are compared.

    """

    def __init__(
        self,
        model: nn.Module,
        check: Callable[[Any], None],
        *,
        since: str,
        facts: Callable[[nn.Module], Facts] | None = None,
    ) -> None:
        self._check, self._since, self._facts = check, since, facts or own_facts
        self._seen = self._facts(model)

    def look(self, model: nn.Module) -> None:
        """Check a model's weights again where they have changed.

        Raises:
            ValueError: if they are refused.

        """
        now = self._facts(model)
        if any(now[name] != self._seen[name] for name in now.keys() & self._seen.keys()):
            try:
                self._check(model)
            except ValueError as error:
                raise ValueError(f"weights changed after {self._since}: {error}") from error
        kept = {name: fact for name, fact in self._seen.items() if not isinstance(name, int)}  # tensors may be gone
        self._seen = {**kept, **now}


def own_facts(model: nn.Module) -> Facts:
    """Return which weights a model of ours has, how often each was written in place, some values, its switches."""
    modules = _modules_in(model)
    weights = _weights_of(modules)
    if shared(weights):
        return {}
    counted: Facts = {"weights": list(written(weights).items()), "switches": _switched(modules)}
    return {**counted, **some_values(enumerate(weights))}


def with_switches(model: nn.Module) -> dict[str, Any]:
    """Return what a fingerprint is of: the state dict, and switches in it that are not at their defaults."""
    return {**model.state_dict(), **_switched(_modules_in(model))}


def weights_in(model: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers that a state dict has, in a quarter of the time that one takes."""
    return _weights_of(_modules_in(model))


def _modules_in(model: nn.Module) -> list[nn.Module]:
    """Return a model's modules, each once, in a fraction of the time that `modules()` takes."""
    modules, found = [model], {model}
    for module in modules:  # grows
        for inner in module._modules.values():
            if inner is not None and inner not in found:  # compiled: no truth value
                found.add(inner)
                modules.append(inner)
    return modules


def _weights_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    found: list[Tensor | None] = []
    for module in modules:
        found += module._parameters.values()
        passing = module._non_persistent_buffers_set
        found += (buffer for name, buffer in module._buffers.items() if name not in passing)
    return [weight for weight in found if weight is not None]


def _switched(modules: Iterable[nn.Module]) -> dict[str, Any]:
    """Return the values of switches that are not at their defaults, by name and place among all switches."""
    held = [
        (name, default, getattr(module, name))
        for module in modules
        for name, default in getattr(type(module), SWITCHES, {}).items()
    ]
    return {f"{name} {place}": value for place, (name, default, value) in enumerate(held) if value != default}


def shared(weights: Iterable[Tensor]) -> bool:
    """Return whether any weight is sharded across processes."""
    return any(hasattr(weight, "full_tensor") for weight in weights)


def written(weights: Iterable[Tensor]) -> Facts:
    """Return by each tensor's identity how often it was written in place; None where torch does not count that."""
    return {id(weight): None if weight.is_inference() else weight._version for weight in weights}


@torch.inference_mode()
def some_values(weights: Iterable[tuple[Hashable, Tensor]]) -> Facts:
    """Return the bytes of a few values of each weight by its name, of plain ones that are not on the meta device."""
    parts: dict[tuple[torch.device, torch.dtype], list[tuple[Hashable, Tensor]]] = {}
    for name, weight in weights:
        if type(weight) in (Tensor, nn.Parameter) and not weight.is_meta and weight.numel():
            reach = weight.numel()
            if not weight.is_contiguous():
                reach = 1 + sum((n - 1) * stride for n, stride in zip(weight.shape, weight.stride(), strict=True))
            step = max(1, (reach - 1) // (SAMPLED - 1))  # the last value too; no multiple of a row: columns differ
            few = weight.as_strided((min(SAMPLED, reach),), (step,))  # no copy, however it lies
            parts.setdefault((weight.device, weight.dtype), []).append((name, few))
    found: Facts = {}
    for (_, dtype), named in parts.items():
        read = torch.cat([few for _, few in named]).view(torch.uint8).cpu().numpy().tobytes()  # one transfer
        start = 0
        for name, few in named:
            end = start + len(few) * dtype.itemsize
            found[name], start = read[start:end], end
    return found
