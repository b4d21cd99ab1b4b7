"""Tiny pipelines of further families of pictures, and of ways to edit and to guide them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tiny_models import configurations
from tiny_parts import frozen, make_t5, make_tokenizer, make_vae
from tiny_pipelines import (
    ATTENTIVE,
    TEXT,
    TinyPipeline,
    chroma,
    denoiser,
    flow,
    flux,
    flux2,
    pixart,
    qwen_image,
    sana,
    sd,
    sd3,
    sdxl,
    z_image,
)
from tiny_variants import mask, picture, varied
from torch import nn
from transformers import T5EncoderModel

SIZE = {"height": 16, "width": 16}
SHORT = {"max_sequence_length": 7}
CHAT = "{{ messages[-1]['content'] }}"


def _of_one_text(name: str, transformer: Any, tokenizer: Any = None, text_encoder: Any = None) -> TinyPipeline:
    """Return a pipeline of one text encoder whose autoencoder gives four channels."""
    parts = {
        "transformer": transformer,
        "scheduler": flow(),
        "vae": make_vae(scaling_factor=1.0, shift_factor=0.0),
        "text_encoder": text_encoder or make_t5(num_layers=2),
        "tokenizer": tokenizer or make_tokenizer(7, ends=True),
    }
    return TinyPipeline(_made(name, parts), {**SIZE, **SHORT})


def _made(name: str, parts: dict[str, Any], **others: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**parts, **others)


def aura_flow() -> TinyPipeline:
    """One sequence of texts and picture; the first time of the model is the last one of the scheduler."""
    return _of_one_text("AuraFlowPipeline", denoiser("AuraFlowTransformer2DModel"))


def lumina() -> TinyPipeline:
    """Time rises, the sign is turned; guidance is of three channels."""
    transformer = denoiser("LuminaNextDiT2DModel", cross_attention_dim=TEXT, learn_sigma=True)
    made = _of_one_text("LuminaPipeline", transformer, make_tokenizer(8, ends=True))
    made.pipe.max_sequence_length = 8
    return replace(made, options={**SIZE, "max_sequence_length": 8, "clean_caption": False})


def omnigen() -> TinyPipeline:
    """Both branches of guidance are in the batch at any scale."""
    parts = {
        "transformer": denoiser("OmniGenTransformer2DModel"),
        "scheduler": flow(invert_sigmas=True, num_train_timesteps=1),
        "vae": make_vae(levels=4),
        "tokenizer": make_tokenizer(64),
    }
    return TinyPipeline(_made("OmniGenPipeline", parts), {"height": 64, "width": 64})


def hunyuan_dit() -> TinyPipeline:
    """Two texts of different lengths; long skips; the scheduler adds noise."""
    import diffusers

    widths = {"text_len": 77, "text_len_t5": 256, "cross_attention_dim": TEXT, "cross_attention_dim_t5": TEXT}
    parts = {
        "transformer": denoiser("HunyuanDiT2DModel", **widths),
        "scheduler": diffusers.DDPMScheduler(),
        "vae": make_vae(levels=4),
        **{"text_encoder": make_t5(), "tokenizer": make_tokenizer(77)},
        **{"text_encoder_2": make_t5(), "tokenizer_2": make_tokenizer(256)},
    }
    pipe = _made(
        "HunyuanDiTPipeline", parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    return TinyPipeline(pipe, {"height": 64, "width": 64, "use_resolution_binning": False})


def cogview3() -> TinyPipeline:
    """Text and picture in one sequence; a scheduler of CogVideoX."""
    import diffusers

    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=False)
    transformer = denoiser("CogView3PlusTransformer2DModel", text_embed_dim=TEXT)
    made = _of_one_text("CogView3PlusPipeline", transformer)
    return varied(made, "CogView3PlusPipeline", {"scheduler": scheduler})


def cogview4() -> TinyPipeline:
    """Texts are filled up to sixteen tokens; a feed-forward runs twice."""
    transformer = denoiser("CogView4Transformer2DModel", text_embed_dim=TEXT)
    made = _of_one_text("CogView4Pipeline", transformer, make_tokenizer(16, ends=True))
    return replace(made, options={**SIZE, "max_sequence_length": 16})


def cogview4_control() -> TinyPipeline:
    """Channels of a picture follow the noisy ones."""
    transformer = denoiser("CogView4Transformer2DModel", text_embed_dim=TEXT, in_channels=8)
    return varied(cogview4(), "CogView4ControlPipeline", {"transformer": transformer}, control_image=picture(16))


def bria() -> TinyPipeline:
    """Flux's blocks, guided by a second pass."""
    return _of_one_text("BriaPipeline", denoiser("BriaTransformer2DModel", in_channels=16))


def ovis_image() -> TinyPipeline:
    """Flux's blocks, a chat's texts."""
    transformer = denoiser("OvisImageTransformer2DModel", in_channels=16, out_channels=16)
    made = _of_one_text("OvisImagePipeline", transformer, make_tokenizer(9, CHAT))
    made.pipe.system_prompt, made.pipe.user_prompt_begin_id = "a ", 1
    return made


def longcat_image() -> TinyPipeline:
    """Guidance that keeps the norm."""
    parts = {
        "transformer": denoiser("LongCatImageTransformer2DModel", in_channels=64),
        "scheduler": flow(),
        "vae": make_vae(16, scaling_factor=1.0, shift_factor=0.0),
        **{"text_encoder": make_t5(num_layers=2), "tokenizer": make_tokenizer(9), "text_processor": None},
    }
    pipe = _made("LongCatImagePipeline", parts)
    pipe.tokenizer_max_length, pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix = 7, "a", "a a"
    return TinyPipeline(pipe, {"height": 8, "width": 8, "enable_prompt_rewrite": False})


def hunyuan_image() -> TinyPipeline:
    """Guidance by a guider, which holds the scale."""
    import diffusers

    def guider() -> Any:
        return diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2)

    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "rope_axes_dim": (4, 4), "patch_size": (1, 1)}
    widths = {"in_channels": 4, "out_channels": 4, "text_embed_dim": TEXT, "text_embed_2_dim": TEXT}
    layers = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "guidance_embeds": False}
    ends = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "scaling_factor": 1.0, "layers_per_block": 1}
    parts = {
        "transformer": frozen(diffusers.HunyuanImageTransformer2DModel(**heads, **widths, **layers)),
        "scheduler": flow(),
        "vae": diffusers.AutoencoderKLHunyuanImage(
            block_out_channels=(32, 32), spatial_compression_ratio=2, sample_size=16, **ends
        ),
        **{"text_encoder": make_t5(num_layers=3), "tokenizer": make_tokenizer(9, ends=True)},
        **{"text_encoder_2": make_t5(), "tokenizer_2": make_tokenizer(9, ends=True)},
        **{"guider": guider(), "ocr_guider": guider()},
    }
    pipe = _made("HunyuanImagePipeline", parts)
    pipe.tokenizer_max_length = pipe.tokenizer_2_max_length = 7
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "a {}", 1
    return TinyPipeline(pipe, SIZE, scale=None)


def ernie_image() -> TinyPipeline:
    """Texts of different lengths in one list."""
    transformer = denoiser("ErnieImageTransformer2DModel", in_channels=4, out_channels=4, text_in_dim=TEXT)
    parts = {"transformer": transformer, "tokenizer": make_tokenizer(7)}
    made = varied(flux2(), "ErnieImagePipeline", parts)
    made.pipe.vae_scale_factor = 2
    return replace(made, options={"height": 8, "width": 8, "use_pe": False})


def krea2() -> TinyPipeline:
    """Several layers of the text encoder, fused in the model."""
    transformer = denoiser("Krea2Transformer2DModel", text_hidden_dim=TEXT)
    encoder = {"text_encoder": make_t5(num_layers=3), "text_encoder_select_layers": (1, 2, 3)}
    parts = {"transformer": transformer, "tokenizer": make_tokenizer(16), "is_distilled": False, **encoder}
    made = varied(qwen_image(), "Krea2Pipeline", parts)
    return replace(made, options={"height": 8, "width": 8, "max_sequence_length": 16})


class Looking(T5EncoderModel):
    """A text encoder that is given pictures too."""

    def forward(self, input_ids: Any, pixel_values: Any = 0.0, **others: Any) -> Any:
        """Return hidden states, to which the mean of the pictures is added."""
        output = super().forward(input_ids, output_hidden_states=True)
        output.hidden_states = tuple(hidden + pixel_values for hidden in output.hidden_states)
        return output


class Processor:
    """A tokenizer that is given pictures too, of which it returns the mean."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer(9)

    def __call__(self, text: Any, images: Any = None, **given: Any) -> Any:
        """Return tokens and pictures."""
        from l2c.integrations.diffusers.prompts import array_of

        known = ("padding", "max_length", "truncation", "return_tensors")
        tokens = self.tokenizer(text, **{name: given[name] for name in known if name in given})
        if images is not None:
            arrays = [array_of(image) for image in (images if isinstance(images, list) else [images])]
            tokens["pixel_values"] = torch.tensor(sum(float(array.mean()) for array in arrays) / 255)
        return tokens


def _qwen_edit(name: str, parts: dict[str, Any] | None = None, **options: Any) -> TinyPipeline:
    """Return a pipeline that is given pictures, which it does not enlarge."""
    import diffusers

    encoder = make_t5(num_layers=2)
    encoder.__class__ = Looking
    made = varied(qwen_image(), name, {"processor": Processor(), "text_encoder": encoder, **(parts or {})}, **options)
    made.pipe.prompt_template_encode, made.pipe.prompt_template_encode_start_idx = "a a {}", 1
    module = importlib.import_module(getattr(diffusers, name).__module__)
    count = len(module.calculate_dimensions(64, 1.0))
    module.calculate_dimensions = lambda area, ratio: (8, 8, None)[:count]  # type: ignore[attr-defined]
    return made


def qwen_image_edit() -> TinyPipeline:
    """Tokens of a picture follow the noisy ones, and the text encoder sees it."""
    return _qwen_edit("QwenImageEditPipeline", image=picture())


def qwen_image_edit_plus() -> TinyPipeline:
    """Several pictures; one prompt a call, prompts differ in length."""
    return _qwen_edit("QwenImageEditPlusPipeline", image=[picture(), picture().rotate(90)])


def qwen_image_layered() -> TinyPipeline:
    """Layers of a picture, with transparency."""
    from diffusers import AutoencoderKLQwenImage

    levels = {"base_dim": 8, "z_dim": 4, "dim_mult": [1], "num_res_blocks": 1, "temperal_downsample": []}
    vae = AutoencoderKLQwenImage(**levels, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, input_channels=4)
    kinds = {"use_layer3d_rope": True, "use_additional_t_cond": True}
    transformer = denoiser("QwenImageTransformer2DModel", joint_attention_dim=TEXT, **kinds)
    parts = {"vae": vae, "transformer": transformer}
    made = _qwen_edit("QwenImageLayeredPipeline", parts, image=picture().convert("RGBA"), layers=2)
    sizes = ("height", "width")
    return replace(made, options={name: value for name, value in made.options.items() if name not in sizes})


def _control(model: str, of: str, **changes: Any) -> dict[str, nn.Module]:
    """Return a ControlNet of one layer beside a model."""
    import diffusers

    return {"controlnet": frozen(getattr(diffusers, model)(**{**configurations()[of]["config"], **changes}))}


def qwen_image_controlnet() -> TinyPipeline:
    """Residuals of a second network."""
    sizes = {"joint_attention_dim": TEXT, "num_layers": 1, "extra_condition_channels": 0}
    parts = _control("QwenImageControlNetModel", "QwenImageTransformer2DModel", **sizes)
    return varied(qwen_image(), "QwenImageControlNetPipeline", parts, control_image=picture())


def sana_controlnet() -> TinyPipeline:
    """Residuals of a second network."""
    parts = _control("SanaControlNetModel", "SanaTransformer2DModel", num_layers=1)
    return varied(sana(), "SanaControlNetPipeline", parts, control_image=picture(32))


def sd_inpaint() -> TinyPipeline:
    """Mask and latents of a picture lie beside the noisy ones."""
    unet = denoiser("UNet2DConditionModel", **ATTENTIVE, in_channels=9)
    given = {"image": picture(), "mask_image": mask(), "strength": 1.0, "height": 8, "width": 8}
    return varied(sd(), "StableDiffusionInpaintPipeline", {"unet": unet}, **given)


def sd_pix2pix() -> TinyPipeline:
    """Guidance of three branches."""
    unet = denoiser("UNet2DConditionModel", **ATTENTIVE, in_channels=8)
    return varied(sd(), "StableDiffusionInstructPix2PixPipeline", {"unet": unet}, image=picture())


def sdxl_base() -> TinyPipeline:
    """End of a call half-way, where a refiner goes on."""
    return varied(sdxl(), "StableDiffusionXLPipeline", denoising_end=0.8)


def sd3_pag() -> TinyPipeline:
    """Perturbed attention in a further branch."""
    return varied(sd3(), "StableDiffusion3PAGPipeline", {"pag_applied_layers": ["blocks.1"]}, pag_scale=2.0)


def pixart_pag() -> TinyPipeline:
    """Perturbed attention in a further branch."""
    return varied(pixart(), "PixArtSigmaPAGPipeline", {"pag_applied_layers": ["blocks.1"]}, pag_scale=2.0)


def pixart_alpha() -> TinyPipeline:
    """PixArt-Alpha."""
    return varied(pixart(), "PixArtAlphaPipeline")


def flux_fill() -> TinyPipeline:
    """Mask and channels of a picture follow the noisy ones."""
    transformer = denoiser("FluxTransformer2DModel", guidance_embeds=True, in_channels=12, out_channels=4)
    return varied(flux(), "FluxFillPipeline", {"transformer": transformer}, image=picture(), mask_image=mask())


def flux_kontext_inpaint() -> TinyPipeline:
    """Tokens of a picture follow the noisy ones; outside the mask the picture comes back."""
    given = {"image": picture(), "mask_image": mask(), "strength": 1.0, "_auto_resize": False, "max_area": 64}
    return varied(flux(), "FluxKontextInpaintPipeline", **given)


def flux_schnell() -> TinyPipeline:
    """Neither guidance nor its scale."""
    return varied(flux(), "FluxPipeline", {"transformer": denoiser("FluxTransformer2DModel")})


def flux2_klein() -> TinyPipeline:
    """Flux 2 guided by a second pass."""
    parts = {"transformer": denoiser("Flux2Transformer2DModel", guidance_embeds=False)}
    return varied(flux2(), "Flux2KleinPipeline", {**parts, "tokenizer": make_tokenizer(7, CHAT)})


def chroma_img2img() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(chroma(), "ChromaImg2ImgPipeline", image=picture(), strength=0.75)


def z_image_img2img() -> TinyPipeline:
    """Begins in the middle of a schedule whose time rises."""
    return varied(z_image(), "ZImageImg2ImgPipeline", image=picture(16), strength=0.75)


IMAGES: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (
        *(aura_flow, lumina, omnigen, hunyuan_dit, cogview3, cogview4, cogview4_control, bria, ovis_image),
        *(longcat_image, hunyuan_image, ernie_image, krea2),
        *(qwen_image_edit, qwen_image_edit_plus, qwen_image_layered, qwen_image_controlnet, sana_controlnet),
        *(sd_inpaint, sd_pix2pix, sdxl_base, sd3_pag, pixart_pag, pixart_alpha),
        *(flux_fill, flux_kontext_inpaint, flux_schnell, flux2_klein, chroma_img2img, z_image_img2img),
    )
}
