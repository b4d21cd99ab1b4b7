"""Tiny pipelines of pictures: what is seen in another one, and models that are built in a way of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from tiny_parts import frozen, make_qwen_vl, make_t5, make_tokenizer, make_vae
from tiny_pipelines import ATTENTIVE, TEXT, TinyPipeline, denoiser, flow, flux2, qwen_image, sd
from tiny_variants import picture, varied, without_ftfy


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


def prx() -> TinyPipeline:
    """Flow whose times are given from 0 to 1."""
    from diffusers import PRXPipeline

    without_ftfy(PRXPipeline)
    transformer = denoiser("PRXTransformer2DModel")
    widths = transformer.config
    pipe = PRXPipeline(
        transformer=transformer,
        scheduler=flow(),
        text_encoder=make_t5(width=widths.context_in_dim),
        tokenizer=make_tokenizer(7),
        vae=make_vae(widths.in_channels, scaling_factor=1.0, shift_factor=0.0),
    )
    given = {"use_resolution_binning": False, "tokenizer_max_length": 7, "skip_text_cleaning": True}
    return TinyPipeline(pipe, {**given, "height": 16, "width": 16})


def bria_fibo() -> TinyPipeline:
    """Hidden states of a language model's layers, one for each block."""
    from diffusers import AutoencoderKLWan, BriaFiboPipeline
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    words = {
        "vocab_size": 128001,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }  # the empty text's is last
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    pipe = BriaFiboPipeline(
        transformer=denoiser("BriaFiboTransformer2DModel", in_channels=16),
        scheduler=flow(),
        vae=AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=SmolLM3ForCausalLM(SmolLM3Config(**words, **sizes, num_key_value_heads=2)).eval(),
        tokenizer=make_tokenizer(7),
    )
    return TinyPipeline(pipe, {"height": 32, "width": 32, "max_sequence_length": 7})


def kandinsky3() -> TinyPipeline:
    """U-Net without the usual blocks, whose whole output is the layer; the scheduler adds noise."""
    import diffusers

    levels = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4}
    down, up = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")
    codes = {"num_vq_embeddings": 12, "vq_embed_dim": 4, "norm_type": "spatial"}
    unet = diffusers.Kandinsky3UNet(
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=TEXT,
    )
    pipe = diffusers.Kandinsky3Pipeline(
        tokenizer=make_tokenizer(128, ends=True),
        text_encoder=make_t5(),
        unet=frozen(unet),
        scheduler=diffusers.DDPMScheduler(),
        movq=diffusers.VQModel(down_block_types=down, up_block_types=up, **levels, **codes),
    )
    return TinyPipeline(pipe, {"height": 16, "width": 16})


def ideogram4() -> TinyPipeline:
    """Guidance by a second network, which is given neither text nor places for it; time rises."""
    from diffusers import Ideogram4Pipeline

    module = sys.modules[Ideogram4Pipeline.__module__]
    module.QWEN3_VL_ACTIVATION_LAYERS = (0, 1)  # type: ignore[attr-defined]
    parts = flux2().pipe
    pipe = Ideogram4Pipeline(
        scheduler=flow(),
        vae=parts.vae,
        text_encoder=make_qwen_vl(TEXT // 2),
        tokenizer=parts.tokenizer,
        transformer=denoiser("Ideogram4Transformer2DModel", in_channels=4, num_layers=4),
        unconditional_transformer=denoiser("Ideogram4Transformer2DModel", in_channels=4, num_layers=4),
    )
    return TinyPipeline(pipe, {"height": 8, "width": 8, "max_sequence_length": 7})


def nucleus() -> TinyPipeline:
    """Experts, texts of lengths of their own, branches whose norm is kept."""
    from diffusers import NucleusMoEImagePipeline

    parts = qwen_image().pipe
    transformer = denoiser("NucleusMoEImageTransformer2DModel", joint_attention_dim=TEXT)
    pipe = NucleusMoEImagePipeline(
        scheduler=flow(),
        vae=parts.vae,
        text_encoder=make_t5(num_layers=2),
        processor=make_tokenizer(16, "{{ messages[-1]['content'][0]['text'] }} a"),
        transformer=transformer,
    )
    pipe.default_return_index = -1
    return TinyPipeline(pipe, {"height": 8, "width": 8, "max_sequence_length": 16})


OTHER_IMAGES: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (marigold_depth, marigold_normals, glm_image, prx, bria_fibo, kandinsky3, ideogram4, nucleus)
}
