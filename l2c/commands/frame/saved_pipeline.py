"""Saved pipelines as the commands read them: a folder or a name on the Hub, a file of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from l2c.integrations.diffusers.options import OF_COMMANDS, check_options
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.prompts import prompt_lines, read_prompts
from l2c.io.names import folder_or_hub
from l2c.io.tensors import usable_device


def read_pipeline(settings: Mapping[str, Any]) -> Any:
    """Return a saved pipeline; see `load_pipeline` for settings and errors."""
    from diffusers import DiffusionPipeline

    if settings.get("prompts") is not None:
        prompt_lines(settings["prompts"])  # before gigabytes of weights are read
    device = usable_device(settings["device"], "model.device")
    with folder_or_hub("pipeline", settings["pipeline"]):
        pipe = DiffusionPipeline.from_pretrained(settings["pipeline"], dtype=getattr(torch, settings["dtype"]))
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    return pipe


def load_pipeline(
    settings: Mapping[str, Any], *, num_evaluations: int, guidance_scale: float | None, fewer_steps: bool = False
) -> Any:
    """Return the backbone of a saved pipeline; its text encoders run once per prompt and are freed.

    Args:
        settings: `pipeline` (a folder or a name on the Hub), `prompts` (a text file or None), `layers` (kinds or
            None), `dtype`, `device`, `options` of the pipeline's call.
        num_evaluations: number of steps.
        guidance_scale: given to models that take it as an input (Flux); for the others guidance is the sampler's.
        fewer_steps: also read the scheduler's steps for every smaller number of steps, for the baseline of that name.

    Raises:
        ValueError: if the prompt file is empty, or a label is out of range.
        OSError: if there is no such pipeline or file.

    """
    pipe = read_pipeline(settings)
    check_options(pipe, settings.get("options"), OF_COMMANDS)
    return pipeline_backbone(
        pipe,
        read_prompts(settings.get("prompts"), pipe),
        num_evaluations=num_evaluations,
        guidance_scale=guidance_scale,
        of=settings.get("layers"),
        options=settings.get("options"),
        fewer_steps=fewer_steps,
    )
