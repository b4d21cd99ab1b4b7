"""The models of a pipeline that are called at every step: one, or two that share a trajectory."""

from __future__ import annotations

from typing import Any

from torch import nn

NAMES = ("transformer", "transformer_2", "unet", "unet_2")


def denoisers_of(pipe_or_model: Any) -> dict[str, nn.Module]:
    """Return the transformers and U-Nets of a pipeline by their names there; a model is its own, named `model`.

    Raises:
        ValueError: if there is no denoiser.

    """
    if isinstance(pipe_or_model, nn.Module):
        return {"model": pipe_or_model}
    found = {name: getattr(pipe_or_model, name, None) for name in NAMES}
    models = {name: model for name, model in found.items() if isinstance(model, nn.Module)}
    if not models:
        raise ValueError(
            f"{type(pipe_or_model).__name__} has neither a transformer nor a unet; give a diffusers pipeline, or the "
            "model that is called at every step"
        )
    return models


def denoiser_of(pipe_or_model: Any) -> Any:
    """Return the one denoiser of a pipeline, the first of two; a model is its own.

    Raises:
        ValueError: if there is no denoiser.

    """
    return next(iter(denoisers_of(pipe_or_model).values()))
