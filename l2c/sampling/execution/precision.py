"""Precision of a network, and the library that multiplies its matrices."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.io.locks import OwnLock
from l2c.io.names import chosen
from l2c.io.seeds import draw_normal

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MATMULS = ("default", "onednn")
_SETTING = OwnLock()
ONEDNN_TOLERANCE = 1e-5  # of the largest entry of a product; one in reduced precision is off by 1e-3


def dtype_of(name: str | torch.dtype | None, what: str = "precision") -> torch.dtype | None:
    """Return the type that a precision's name stands for; a type and None are returned as they are.

    Raises:
        ValueError: if the name is unknown; the message calls the setting `what`.

    """
    if name is None or isinstance(name, torch.dtype):
        return name
    return DTYPES[chosen(what, name, DTYPES)]


def in_precision(backbone: Backbone, precision: str | None) -> Backbone:
    """Return the backbone in a precision: itself where it is in it already, else a copy; None = as it is.

    Args:
        backbone: the network; it is left as it is.
        precision: `fp32`, `tf32` (32-bit weights, products in TF32 on GPUs that have it), `bf16` or `fp16`. The
            solver's arithmetic stays in 32 bits.

    Raises:
        ValueError: if the precision is unknown.

    """
    dtype = dtype_of(precision)
    if dtype is None or backbone.dtype == dtype:
        return backbone
    return copy.deepcopy(backbone).to(dtype)


def matmul_setting(precision: str | None, matmul: str, device: torch.device) -> str | None:
    """Return torch's matrix-product setting for a precision; None = leave torch's as it is.

    Args:
        precision: see `in_precision`.
        matmul: `onednn` sends 32-bit products on a CPU to oneDNN, which is up to twice as fast as MKL on some
            processors. Torch lets it take fewer bits where the processor has instructions for them, so its accuracy
            is checked on this machine first; where it is not that of 32 bits, or torch does not use oneDNN for such
            products at all (processors without AVX-512), one warning and the default.
        device: device of the backbone; on another than a CPU there is no such choice.

    Raises:
        ValueError: if the way to multiply is unknown.

    """
    chosen("matmul", matmul, MATMULS)
    if matmul == "onednn" and device.type == "cpu":
        obstacle = _onednn_obstacle()
        if obstacle is None:
            return "medium"
        warnings.warn(f"matmul='default' is used instead of 'onednn': {obstacle}", stacklevel=3)
    return {"tf32": "high", "fp32": "highest"}.get(precision or "")


@contextmanager
def matmuls(setting: str | None) -> Iterator[None]:
    """Apply `torch.set_float32_matmul_precision(setting)` for the time of a `with` block."""
    if setting is None:
        yield
        return
    with _SETTING:  # which is that of the whole process: threads with settings take turns
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def own_arithmetic(setting: str | None, device: torch.device) -> Iterator[None]:
    """Compute in a `with` block as a sampler was told: its `matmuls`, and no `torch.autocast` around the caller.

    Args:
        setting: see `matmuls`.
        device: device of the backbone, whose autocast is off in the block.

    """
    kind = device.type
    surrounded = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with matmuls(setting), torch.autocast(kind, enabled=False) if surrounded else nullcontext():
        yield


def _onednn_obstacle() -> str | None:
    """Return why 32-bit products should not go to oneDNN on this machine, or None."""
    capability = torch.backends.cpu.get_cpu_capability()
    if "AVX512" not in capability:
        return f"on a processor with {capability} torch multiplies 32-bit matrices by its default all the same"
    error = _onednn_error()
    if error > ONEDNN_TOLERANCE:
        return (
            f"it multiplies with an error of {error:.0e} on this processor, not that of 32 bits "
            f"({ONEDNN_TOLERANCE:.0e}); choose precision='bf16' if fewer bits are welcome"
        )
    return None


def _onednn_error() -> float:
    """Return the largest error of a 32-bit product under `medium`, over its largest entry."""
    a, b = draw_normal((2, 256, 256), "probe of matrix products")
    with matmuls("medium"):
        product: Tensor = torch.nn.functional.linear(a, b)
    exact = a.double() @ b.double().T
    return float((product - exact).abs().max() / exact.abs().max())
