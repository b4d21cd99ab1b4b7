"""Settings of how a sampler runs, as commands name them: precision, products, cache, compiling, capturing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.sampling.sampler import Sampler

WAYS = ("precision", "matmul", "cache_dtype", "cache_device")


def ways(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a command's settings that are arguments of a `Sampler`; what is left out is the sampler's own.

    Args:
        settings: settings by name; `precision`, `matmul`, `cache_dtype` and `cache_device` are used.

    """
    return {name: settings[name] for name in WAYS if settings.get(name) is not None}


def launch(sampler: Sampler, num_images: int, settings: Mapping[str, Any], *, progress: bool = True) -> None:
    """Compile a sampler's blocks, and let its trajectories be captured, where a command's settings say so.

    Args:
        sampler: on its device already.
        num_images: the batch that is compiled for; another one compiles anew.
        settings: settings by name; `compile` and `capture` are used.
        progress: show a bar while compiling.

    """
    if settings.get("compile"):
        sampler.compile(num_images, progress=progress)
    if settings.get("capture"):
        sampler.capture()
