"""Images of a pipeline by its own call, decoding included; each prompt with noise of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.integrations.diffusers.guidance import guidance_of
from l2c.integrations.diffusers.prompts import condition_of
from l2c.io.seeds import torch_generator

PURPOSE = "image of a pipeline"


def pipeline_images(
    pipe: Any,
    prompts: Sequence[str] | Sequence[int],
    *,
    seed: int,
    num_evaluations: int,
    guidance_scale: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return images (N, 3, H, W) in [-1, 1], one for each prompt; image i has a random stream of its own.

    Args:
        pipe: a diffusers pipeline that returns images, with or without a cache graph.
        prompts: texts, or class labels for a class-conditional pipeline.
        seed: seed of all images; neighbouring seeds share none.
        num_evaluations: number of steps.
        guidance_scale: None = the pipeline's own.
        options: further arguments of its call.

    """
    given, guided = condition_of(pipe), guidance_of(pipe).arguments(guidance_scale)
    settings = {"num_inference_steps": num_evaluations, "output_type": "np", **guided, **(options or {})}
    images = []
    for i, prompt in enumerate(tqdm(prompts, desc="drawing", unit="image")):
        generator = torch_generator(PURPOSE, seed, i)
        images.append(torch.as_tensor(pipe(**{given: [prompt]}, generator=generator, **settings).images))
    return torch.cat(images).movedim(-1, 1).float() * 2 - 1
