"""Tiny pipelines of older families: a prior of embeddings, U-Nets of videos, with a control inside, without texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_parts import frozen, make_clip, make_tokenizer, make_vision
from tiny_pipelines import ATTENTIVE, TEXT, TinyPipeline, denoiser, sd
from tiny_variants import picture, varied


def kandinsky_prior() -> TinyPipeline:
    """Draws an embedding of a picture; the scheduler adds noise and is given the step after."""
    import diffusers
    from transformers import CLIPImageProcessor

    width = 8
    pipe = diffusers.KandinskyV22PriorPipeline(
        prior=denoiser("PriorTransformer", num_layers=4),
        image_encoder=make_vision(width),
        text_encoder=make_clip(width, projected=True),
        tokenizer=make_tokenizer(7),
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        image_processor=CLIPImageProcessor(crop_size=224, size=224),
    )
    return TinyPipeline(pipe)


def text_to_video() -> TinyPipeline:
    """U-Net of pictures with attention over time."""
    levels = {"down_block_types": ["CrossAttnDownBlock3D"] * 2, "up_block_types": ["CrossAttnUpBlock3D"] * 2}
    unet = denoiser("UNet3DConditionModel", cross_attention_dim=TEXT, **levels)
    return varied(sd(), "TextToVideoSDPipeline", {"unet": unet}, num_frames=2, height=8, width=8)


def i2vgen_xl() -> TinyPipeline:
    """Video from a picture and a text."""
    from transformers import CLIPImageProcessor

    levels = {"down_block_types": ["CrossAttnDownBlock3D"] * 2, "up_block_types": ["CrossAttnUpBlock3D"] * 2}
    parts = {
        "unet": denoiser("I2VGenXLUNet", cross_attention_dim=TEXT, **levels),
        "image_encoder": make_vision(TEXT),
        "feature_extractor": CLIPImageProcessor(crop_size=224, size=224),
    }
    given = {"image": picture(16), "num_frames": 2, "height": 16, "width": 16, "clip_skip": None}
    return varied(sd(), "I2VGenXLPipeline", parts, **given)


def sd_controlnet_xs() -> TinyPipeline:
    """Control that runs inside the U-Net."""
    import diffusers

    unet = denoiser("UNet2DConditionModel", **ATTENTIVE, layers_per_block=2)
    sizes = {"block_out_channels": (8, 16), "base_block_out_channels": (16, 32), "max_norm_num_groups": 4}
    attention = {"num_attention_heads": 2, "cross_attention_dim": TEXT, "transformer_layers_per_block": 5}
    control = diffusers.ControlNetXSAdapter(
        **sizes,
        **attention,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        conditioning_embedding_out_channels=(4,),
        upcast_attention=False,
        use_linear_projection=False,
    )
    parts = {"unet": unet, "controlnet": frozen(control)}
    return varied(sd(), "StableDiffusionControlNetXSPipeline", parts, image=picture())


def ldm_super_resolution() -> TinyPipeline:
    """Enlarges a picture, whose values lie beside the noisy latents, without texts and guidance."""
    import diffusers

    levels = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
    ends = {"in_channels": 6, "out_channels": 3, "sample_size": 8}
    pipe = diffusers.LDMSuperResolutionPipeline(
        vqvae=diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=8),
        unet=denoiser("UNet2DModel", **levels, **ends),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    )
    pictures = tuple(torch.randn(1, 3, 8, 8) for _ in range(2))
    return TinyPipeline(pipe, prompts=pictures, scale=None, listed=False)


OLDER: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (kandinsky_prior, text_to_video, i2vgen_xl, sd_controlnet_xs, ldm_super_resolution)
}
