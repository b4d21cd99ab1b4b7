"""Tiny pipelines that start from pictures or are steered by them, from the parts of tiny_pipelines.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from tiny_models import configurations
from tiny_parts import frozen
from tiny_pipelines import (
    ATTENTIVE,
    TEXT,
    TinyPipeline,
    cogvideox,
    denoiser,
    flux,
    qwen_image,
    sd,
    sd3,
    sdxl,
    z_image,
)
from torch import nn


def picture(size: int = 8) -> Any:
    """Return a picture of two colours."""
    from PIL import Image

    made = Image.new("RGB", (size, size), "red")
    made.paste("blue", (0, 0, size // 2, size // 2))
    return made


def mask(size: int = 8) -> Any:
    """Return the mask of a picture's left half."""
    from PIL import Image

    made = Image.new("L", (size, size), 0)
    made.paste(255, (0, 0, size // 2, size))
    return made


def varied(base: TinyPipeline, name: str, parts: Mapping[str, Any] | None = None, **options: Any) -> TinyPipeline:
    """Return a pipeline of another class with the parts of one, other parts and options of its call beside.

    Options that its call does not know are left out.
    """
    import diffusers

    _without_spread(base.pipe.vae)
    kind = getattr(diffusers, name)
    without_ftfy(kind)
    taken = signature(kind.__init__).parameters
    own = {part: module for part, module in base.pipe.components.items() if part in taken}
    if "requires_safety_checker" in taken:
        own["requires_safety_checker"] = False
    known = signature(kind.__call__).parameters
    kept = {option: value for option, value in base.options.items() if option in known}
    return replace(base, pipe=kind(**{**own, **(parts or {})}), options={**kept, **options})


def without_ftfy(kind: Any) -> None:
    """Let a pipeline that mends texts by the package ftfy take them as they are, where it is not installed."""
    module = sys.modules[kind.__module__]
    if hasattr(module, "is_ftfy_available") and not hasattr(module, "ftfy"):
        module.ftfy = SimpleNamespace(fix_text=str)  # type: ignore[attr-defined]


def _without_spread(vae: Any) -> None:
    """Let an autoencoder encode a picture to the same latents each time: the variances come last."""
    last = getattr(vae, "quant_conv", None) or getattr(vae.encoder, "conv_out", None)
    for part in () if last is None else last.modules():  # of a video's, a convolution inside
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            half = part.out_channels // 2
            with torch.no_grad():
                part.weight[half:], part.bias[half:] = 0.0, -30.0  # type: ignore[index]


def sd_img2img() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(sd(), "StableDiffusionImg2ImgPipeline", image=picture(), strength=0.75)


def sd_controlnet() -> TinyPipeline:
    """Residuals of a second network, made from the same noisy input at every step."""
    import diffusers

    net = diffusers.ControlNetModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=4,
        transformer_layers_per_block=1,
        conditioning_embedding_out_channels=(16,),
    )
    return varied(sd(), "StableDiffusionControlNetPipeline", {"controlnet": frozen(net)}, image=picture())


def sd_adapter() -> TinyPipeline:
    """Features of a picture, of which the U-Net takes one after the other out of a list."""
    import diffusers

    adapter = diffusers.T2IAdapter(in_channels=3, channels=(16, 32), num_res_blocks=1, downscale_factor=1)
    return varied(sd(), "StableDiffusionAdapterPipeline", {"adapter": frozen(adapter)}, image=picture())


def sdxl_img2img() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(sdxl(), "StableDiffusionXLImg2ImgPipeline", image=picture(), strength=0.75)


def sdxl_inpaint() -> TinyPipeline:
    """Outside the mask the picture comes back at every step."""
    return varied(sdxl(), "StableDiffusionXLInpaintPipeline", image=picture(), mask_image=mask(), strength=0.99)


def sdxl_turbo() -> TinyPipeline:
    """Guidance scale 0, by which turbo models are called."""
    return replace(sdxl(), scale=0.0)


def lcm() -> TinyPipeline:
    """Guidance is an input of the U-Net; the scheduler adds noise."""
    from diffusers import LCMScheduler

    unet = denoiser("UNet2DConditionModel", **ATTENTIVE, time_cond_proj_dim=16)
    return varied(sd(), "LatentConsistencyModelPipeline", {"unet": unet, "scheduler": LCMScheduler()})


def sd3_img2img() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(sd3(), "StableDiffusion3Img2ImgPipeline", image=picture(), strength=0.75)


def flux_img2img() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(flux(), "FluxImg2ImgPipeline", image=picture(), strength=0.75)


def flux_kontext() -> TinyPipeline:
    """Tokens of a picture follow the noisy ones."""
    return varied(flux(), "FluxKontextPipeline", image=picture(), _auto_resize=False, max_area=64)


def flux_control() -> TinyPipeline:
    """Channels of a picture follow the noisy ones."""
    transformer = denoiser("FluxTransformer2DModel", guidance_embeds=True, in_channels=8, out_channels=4)
    return varied(flux(), "FluxControlPipeline", {"transformer": transformer}, control_image=picture())


def flux_controlnet() -> TinyPipeline:
    """Residuals of a second network, made from the same noisy input at every step."""
    import diffusers

    config = configurations()["FluxTransformer2DModel"]["config"]
    net = diffusers.FluxControlNetModel(
        **{**config, "guidance_embeds": True, "num_layers": 1, "num_single_layers": 1}
    )
    return varied(flux(), "FluxControlNetPipeline", {"controlnet": frozen(net)}, control_image=picture())


def qwen_image_inpaint() -> TinyPipeline:
    """Outside the mask the picture comes back at every step."""
    return varied(qwen_image(), "QwenImageInpaintPipeline", image=picture(), mask_image=mask(), strength=1.0)


def z_image_turbo() -> TinyPipeline:
    """Guidance scale 0, by which turbo models are called."""
    return replace(z_image(), scale=0.0)


def cogvideox_i2v() -> TinyPipeline:
    """Latents of a picture lie beside the noisy ones."""
    small = {"sample_width": 2, "sample_height": 2, "sample_frames": 9}
    transformer = denoiser("CogVideoXTransformer3DModel", text_embed_dim=TEXT, in_channels=8, out_channels=4, **small)
    return varied(cogvideox(), "CogVideoXImageToVideoPipeline", {"transformer": transformer}, image=picture(16))


def flux_inpaint() -> TinyPipeline:
    """Inpaint: the picture outside the mask is put back at every step."""
    return varied(flux(), "FluxInpaintPipeline", image=picture(), mask_image=mask(), strength=0.75)


def qwen_image_img2img() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(qwen_image(), "QwenImageImg2ImgPipeline", image=picture(), strength=0.75)


VARIANTS: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (
        *(sd_img2img, sd_controlnet, sd_adapter, sdxl_img2img, sdxl_inpaint, sdxl_turbo, lcm, sd3_img2img),
        *(flux_img2img, flux_kontext, flux_control, flux_controlnet, qwen_image_inpaint, z_image_turbo),
        *(cogvideox_i2v, flux_inpaint, qwen_image_img2img),
    )
}
