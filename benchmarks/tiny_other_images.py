"""Tiny pipelines of pictures that see another picture, or are drawn in more than one stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_parts import make_t5, make_tokenizer, make_vae
from tiny_pipelines import ATTENTIVE, TEXT, TinyPipeline, denoiser, flow, sd
from tiny_variants import picture, varied


def _marigold(pipeline: str) -> TinyPipeline:
    """Return a pipeline that draws what it sees in a picture, without texts."""
    from diffusers import DDIMScheduler

    unet = denoiser("UNet2DConditionModel", **{**ATTENTIVE, "transformer_layers_per_block": 2}, in_channels=8)
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    parts = {"unet": unet, "scheduler": scheduler, "tokenizer": make_tokenizer(7, ends=True)}
    made = varied(sd(), pipeline, parts, processing_resolution=0)
    made.pipe.register_to_config(default_denoising_steps=4, default_processing_resolution=0)
    return TinyPipeline(made.pipe, {"processing_resolution": 0}, (picture(), picture().rotate(90)), scale=None)


def marigold_depth() -> TinyPipeline:
    """Depth of a picture, whose latents come before the noisy ones."""
    return _marigold("MarigoldDepthPipeline")


def marigold_normals() -> TinyPipeline:
    """Surface normals of a picture."""
    return _marigold("MarigoldNormalsPipeline")


def glm_image() -> TinyPipeline:
    """Tokens that a language model drew before are an option; what is written in a prompt is its text."""
    from diffusers import GlmImagePipeline

    latents = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    pipe = GlmImagePipeline(
        tokenizer=make_tokenizer(7, ends=True),
        processor=None,
        text_encoder=make_t5(),
        vision_language_encoder=None,
        vae=make_vae(**latents),
        transformer=denoiser("GlmImageTransformer2DModel", text_embed_dim=TEXT),
        scheduler=flow(),
    )
    given = {"height": 8, "width": 8, "prior_token_ids": torch.arange(16)[None]}
    return TinyPipeline(pipe, given, ('a "red cat"', 'a "blue dog"'))


OTHER_IMAGES: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker for maker in (marigold_depth, marigold_normals, glm_image)
}
