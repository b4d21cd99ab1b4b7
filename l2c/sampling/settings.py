"""Settings of how a sampler runs, as commands name them: precision, products, cache, compiling, capturing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.sampling.sampler import Sampler

ARGUMENTS = ("precision", "matmul", "cache_dtype", "cache_device")


def sampler_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Sampler` arguments among a command's settings; missing ones keep the sampler's defaults.

    Args:
        settings: settings by name; `precision`, `matmul`, `cache_dtype` and `cache_device` are used.

    """
    return {name: settings[name] for name in ARGUMENTS if settings.get(name) is not None}


def prepare(sampler: Sampler, num_images: int, settings: Mapping[str, Any], *, progress: bool = True) -> None:
    """Compile a sampler's blocks and capture its trajectories, if a command's settings ask for it.

    Args:
        sampler: on its device already.
        num_images: the batch size that is compiled for; another size compiles again.
        settings: settings by name; `compile` and `capture` are used.
        progress: show a bar while compiling.

    """
    if settings.get("compile"):
        sampler.compile(num_images, progress=progress)
    if settings.get("capture"):
        sampler.capture()
