"""Tiny pipelines of the families of diffusers, from random parts, each with the arguments of a call.

Denoisers are those of tiny_models.yaml, some with another width of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_models import configurations
from tiny_parts import frozen, make_clip, make_t5, make_tokenizer, make_vae

STEPS = 4
MODULAR = (
    "diffusers has modular pipelines of it alone: `accelerate` refuses them, a graph can be applied; "
    "no tiny one is built here"
)
QWEN_VL = "texts run through a whole Qwen3-VL with its processor, of which there is no tiny one here"
WITHOUT = {  # classes of tiny_models.yaml that no pipeline here has, with the reason
    "BriaFibo2Transformer2DModel": QWEN_VL,
    "DreamLiteTransformer2DModel": "a part of `DreamLiteUNetModel`",
    "Flux3Transformer2DModel": MODULAR,
    "Kandinsky6SRTransformer3DModel": "refines the tiles of a given video; no tiny one is built here",
    "MiniMaxH3Transformer3DModel": MODULAR,
    "MiniMaxMusic3Transformer1DModel": MODULAR,
    "QwenImage21Transformer2DModel": QWEN_VL,
    "RFD4ProteinaTransformer": "steps two inputs by a scheduler each, which a calibration does not follow",
    "SanaWMLTX2RefinerTransformer3DModel": "a stage that SANA-WM calls by itself",
    "SanaWMTransformer3DModel": "follows a track of cameras; no tiny one is built here",
    "Transformer2DModel": "a part of U-Nets",
    "TransformerTemporalModel": "a part of U-Nets of videos",
    "UNet1DModel": "Dance Diffusion draws from no prompt, label or picture",
    "WanAnimate2Transformer3DModel": MODULAR,
}
PROMPTS = ("a red cat", "blue dog")
TEXT = 24  # width of texts
GLOBAL = 16  # width of pooled texts
ATTENTIVE = {  # of a U-Net most of whose MACs lie in its spatial transformers
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "transformer_layers_per_block": 5,
}


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline and what it is called with.

    Attributes:
        pipe: the pipeline.
        options: of its call, besides prompt, steps and guidance.
        prompts: what it draws.
        scale: guidance scale of a call; None = as its default.
        listed: whether it takes prompts as a list.
        as_given: turns noise as the model is given it into the `latents` of a call.

    """

    pipe: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[Any] = PROMPTS
    scale: float | None = 3.0
    listed: bool = True
    as_given: Callable[[torch.Tensor], torch.Tensor] = torch.clone

    def draw(self, prompt: Any = None, **changes: Any) -> torch.Tensor:
        """Return what the pipeline draws from a seed, decoded, as one tensor."""
        from l2c.integrations.diffusers.guidance import guidance_of
        from l2c.integrations.diffusers.prompts import condition_of

        prompt = self.prompts[0] if prompt is None else prompt
        given: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "output_type": "pt",
            "generator": torch.Generator().manual_seed(0),
            condition_of(self.pipe): [prompt] if self.listed else prompt,
            **guidance_of(self.pipe).arguments(self.scale),
            **self.options,
            **changes,
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)  # some encode pictures without the generator
            return drawn(self.pipe(**given))

    def latents(self, noise: torch.Tensor) -> torch.Tensor:
        """Return what the pipeline draws from noise as its model is given it, before the decoder."""
        return self.draw(latents=self.as_given(noise.clone()), output_type="latent")


def drawn(output: Any) -> torch.Tensor:
    """Return the pictures, frames or sound in what a pipeline returns."""
    found = next(
        getattr(output, name)
        for name in ("images", "frames", "audios", "image", "prediction", "image_embeddings", "image_embeds", "video")
        if hasattr(output, name)
    )
    return torch.stack(list(found)) if isinstance(found, list) else torch.as_tensor(found)


def denoiser(name: str, **changes: Any) -> Any:
    """Return a denoiser of a class of diffusers, as configured there but for some changes."""
    import diffusers

    return frozen(getattr(diffusers, name)(**{**configurations()[name]["config"], **changes}))


def flow(**options: Any) -> Any:
    """Return the scheduler of most flows."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def dit() -> TinyPipeline:
    """Class-conditional; predicts variances too."""
    from diffusers import DDIMScheduler, DiTPipeline

    transformer = denoiser("DiTTransformer2DModel")
    return TinyPipeline(
        DiTPipeline(transformer=transformer, vae=make_vae(), scheduler=DDIMScheduler()), prompts=(3, 7)
    )


def pixart() -> TinyPipeline:
    """PixArt-Sigma; predicts variances too."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    pipe = PixArtSigmaPipeline(
        tokenizer=make_tokenizer(7),
        text_encoder=make_t5(),
        vae=make_vae(),
        transformer=denoiser("PixArtTransformer2DModel", out_channels=8),
        scheduler=DPMSolverMultistepScheduler(),
    )
    sizes = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    return TinyPipeline(pipe, {**sizes, "max_sequence_length": 7})


def sd() -> TinyPipeline:
    """Stable Diffusion 1 and 2: a U-Net."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_clip(TEXT),
        tokenizer=make_tokenizer(7),
        unet=denoiser("UNet2DConditionModel", **ATTENTIVE),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return TinyPipeline(pipe)


def sdxl() -> TinyPipeline:
    """Two text encoders; an empty prompt is zeros."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = denoiser(
        "UNet2DConditionModel",
        **ATTENTIVE,
        cross_attention_dim=TEXT + GLOBAL,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + GLOBAL,
    )
    pipe = StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=make_clip(TEXT),
        text_encoder_2=make_clip(GLOBAL, projected=True),
        tokenizer=make_tokenizer(7),
        tokenizer_2=make_tokenizer(7),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"),
    )
    return TinyPipeline(pipe, {"height": 8, "width": 8})


def _two_clips() -> dict[str, Any]:
    """Return a flow's scheduler, an autoencoder of four channels and two pooled encoders."""
    return {
        "scheduler": flow(),
        "vae": make_vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        "text_encoder": make_clip(GLOBAL, projected=True),
        "tokenizer": make_tokenizer(7),
        "text_encoder_2": make_clip(GLOBAL, projected=True),
        "tokenizer_2": make_tokenizer(7),
    }


def sd3() -> TinyPipeline:
    """Two pooled encoders and one of tokens, in one sequence."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline(
        transformer=denoiser(
            "SD3Transformer2DModel", pooled_projection_dim=2 * GLOBAL, joint_attention_dim=2 * GLOBAL
        ),
        **_two_clips(),
        text_encoder_3=make_t5(width=2 * GLOBAL),
        tokenizer_3=make_tokenizer(7),
    )
    return TinyPipeline(pipe, {"height": 8, "width": 8, "max_sequence_length": 7})


def flux() -> TinyPipeline:
    """Guidance is an input of the model."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline(
        scheduler=flow(),
        vae=make_vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=make_clip(GLOBAL),
        tokenizer=make_tokenizer(7),
        text_encoder_2=make_t5(num_layers=2),
        tokenizer_2=make_tokenizer(7),
        transformer=denoiser("FluxTransformer2DModel", guidance_embeds=True),
    )
    return TinyPipeline(pipe, {"max_sequence_length": 7, "height": 8, "width": 8})


def flux2() -> TinyPipeline:
    """Texts are a chat's, of several layers of the encoder."""
    from diffusers import AutoencoderKLFlux2, Flux2Pipeline

    vae = AutoencoderKLFlux2(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=4,
        sample_size=8,
    )
    chat = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }} {% endfor %}{% endfor %}"
    pipe = Flux2Pipeline(
        scheduler=flow(),
        vae=vae,
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7, chat),
        transformer=denoiser("Flux2Transformer2DModel"),
    )
    pipe.system_message = "a"
    return TinyPipeline(
        pipe,
        {"max_sequence_length": 7, "height": 8, "width": 8, "text_encoder_out_layers": (1,)},
        as_given=lambda noise: noise.mT.unflatten(2, (4, 4)),
    )


def chroma() -> TinyPipeline:
    """Flux's blocks, guided by a second pass."""
    from diffusers import ChromaPipeline

    pipe = ChromaPipeline(
        scheduler=flow(),
        vae=make_vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7),
        transformer=denoiser("ChromaTransformer2DModel"),
    )
    return TinyPipeline(pipe, {"max_sequence_length": 7, "height": 8, "width": 8})


def qwen_image() -> TinyPipeline:
    """Prompts differ in length; guidance is `true_cfg_scale`, by a pass of its own."""
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline

    pipe = QwenImagePipeline(
        scheduler=flow(),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1],
            num_res_blocks=1,
            temperal_downsample=[],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7),
        transformer=denoiser("QwenImageTransformer2DModel", joint_attention_dim=TEXT),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "a a {}", 1
    return TinyPipeline(pipe, {"height": 8, "width": 8, "negative_prompt": [""]})


def sana() -> TinyPipeline:
    """Linear attention, an autoencoder of its own."""
    from diffusers import AutoencoderDC, SanaPipeline

    pipe = SanaPipeline(
        tokenizer=make_tokenizer(7),
        text_encoder=make_t5(num_layers=2),
        vae=AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            attention_head_dim=4,
        ),
        transformer=denoiser("SanaTransformer2DModel"),
        scheduler=flow(),
    )
    options = {"use_resolution_binning": False, "complex_human_instruction": None, "height": 32, "width": 32}
    return TinyPipeline(pipe, {**options, "max_sequence_length": 7, "clean_caption": False})


def z_image() -> TinyPipeline:
    """Noisy inputs, conditions and predictions are lists; prompts differ in length; time rises."""
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline(
        scheduler=flow(),
        vae=make_vae(4, scaling_factor=1.0, shift_factor=0.0),
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7, "{{ messages[0]['content'] }}"),
        transformer=denoiser("ZImageTransformer2DModel", cap_feat_dim=TEXT),
    )
    return TinyPipeline(
        pipe, {"max_sequence_length": 7, "height": 16, "width": 16}, as_given=lambda noise: noise.squeeze(2)
    )


def lumina2() -> TinyPipeline:
    """Time rises, the prediction's sign is turned."""
    from diffusers import Lumina2Pipeline

    pipe = Lumina2Pipeline(
        transformer=denoiser("Lumina2Transformer2DModel", cap_feat_dim=TEXT, num_layers=6),
        scheduler=flow(),
        vae=make_vae(4, scaling_factor=1.0, shift_factor=0.0),
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(16),
    )
    return TinyPipeline(pipe, {"max_sequence_length": 16, "height": 16, "width": 16, "system_prompt": "a"})


def hidream() -> TinyPipeline:
    """Four text encoders, one of which gives all its layers; the sign is turned."""
    from diffusers import HiDreamImagePipeline
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    config._attn_implementation = "eager"  # the pipeline asks for attention maps
    pipe = HiDreamImagePipeline(
        **_two_clips(),
        text_encoder_3=make_t5(),
        tokenizer_3=make_tokenizer(7),
        text_encoder_4=LlamaForCausalLM(config).eval(),
        tokenizer_4=make_tokenizer(7),
        transformer=denoiser("HiDreamImageTransformer2DModel", caption_channels=[TEXT, 16], text_emb_dim=2 * GLOBAL),
    )
    pipe.default_sample_size = 16  # any other size is scaled to as many pixels
    return TinyPipeline(pipe, {"height": 16, "width": 16, "max_sequence_length": 7})


def cogvideox() -> TinyPipeline:
    """Time runs over whole numbers, blocks return (image, text)."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, DDIMScheduler

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    small = {"sample_width": 2, "sample_height": 2, "sample_frames": 9}
    pipe = CogVideoXPipeline(
        tokenizer=make_tokenizer(7),
        text_encoder=make_t5(num_layers=2),
        vae=vae,
        transformer=denoiser("CogVideoXTransformer3DModel", text_embed_dim=TEXT, **small),
        scheduler=DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=False),
    )
    return TinyPipeline(pipe, {"max_sequence_length": 7, "height": 16, "width": 16, "num_frames": 8})


def hunyuan_video() -> TinyPipeline:
    """Guidance is an input of the model, a second pass is possible besides."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline

    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7),
        transformer=denoiser("HunyuanVideoTransformer3DModel", text_embed_dim=TEXT, pooled_projection_dim=GLOBAL),
        vae=vae,
        scheduler=flow(),
        text_encoder_2=make_clip(GLOBAL, length=77),
        tokenizer_2=make_tokenizer(77),
    )
    template = {"template": "{}", "crop_start": 0}
    sizes = {"height": 16, "width": 16, "num_frames": 5}
    return TinyPipeline(pipe, {**sizes, "prompt_template": template, "max_sequence_length": 7})


def ltx() -> TinyPipeline:
    """Latents are tokens."""
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline

    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    pipe = LTXPipeline(
        scheduler=flow(),
        vae=vae,
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7),
        transformer=denoiser("LTXVideoTransformer3DModel", caption_channels=TEXT),
    )
    return TinyPipeline(pipe, {"max_sequence_length": 7, "height": 32, "width": 32, "num_frames": 5})


def mochi() -> TinyPipeline:
    """Mochi sets steps and times itself."""
    from diffusers import AutoencoderKLMochi, MochiPipeline

    vae = AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    pipe = MochiPipeline(
        scheduler=flow(num_train_timesteps=1000, invert_sigmas=True),
        vae=vae,
        text_encoder=make_t5(num_layers=2),
        tokenizer=make_tokenizer(7),
        transformer=denoiser("MochiTransformer3DModel", in_channels=12, text_embed_dim=TEXT),
    )
    return TinyPipeline(pipe, {"max_sequence_length": 7, "height": 16, "width": 16, "num_frames": 7})


def _wan(second: bool) -> TinyPipeline:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    def transformer() -> Any:
        return denoiser("WanTransformer3DModel", in_channels=16, out_channels=16, text_dim=TEXT, num_layers=4)

    pipe = WanPipeline(
        tokenizer=make_tokenizer(7),
        text_encoder=make_t5(),
        vae=AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer(),
        transformer_2=transformer() if second else None,
        boundary_ratio=0.8 if second else None,
    )
    return TinyPipeline(pipe, {"max_sequence_length": 7, "height": 16, "width": 16, "num_frames": 1})


def wan21() -> TinyPipeline:
    """Guidance branches run apart."""
    return _wan(second=False)


def wan22() -> TinyPipeline:
    """Two denoisers that share a trajectory."""
    return _wan(second=True)


def stable_audio() -> TinyPipeline:
    """Sound; the model is given times of a scheduler's own."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    pipe = StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[1, 2],
            channel_multiples=[1, 1],
            decoder_channels=8,
            decoder_input_channels=4,
            sampling_rate=16,
        ),
        text_encoder=make_t5(),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=TEXT, conditioning_dim=8, min_value=0, max_value=32
        ),
        tokenizer=make_tokenizer(7),
        transformer=denoiser("StableAudioDiTModel", cross_attention_input_dim=8, global_states_input_dim=16),
        scheduler=EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
        ),
    )
    return TinyPipeline(pipe, {"audio_end_in_s": 2.0})


def svd() -> TinyPipeline:
    """Pictures instead of texts, beside the noisy frames; guidance rises from frame to frame."""
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        intermediate_size=16,
        patch_size=112,
    )
    unet = denoiser(
        "UNetSpatioTemporalConditionModel", in_channels=8, cross_attention_dim=32, transformer_layers_per_block=5
    )
    pipe = StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(block_out_channels=(32,), latent_channels=4, sample_size=8),
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            interpolation_type="linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
            steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    )
    pictures = tuple(Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    return TinyPipeline(
        pipe, {"height": 8, "width": 8, "num_frames": 2, "noise_aug_strength": 0.0}, pictures, scale=None
    )


PIPELINES: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (
        *(dit, pixart, sd, sdxl, sd3, flux, flux2, chroma, qwen_image, sana, z_image, lumina2, hidream),
        *(cogvideox, hunyuan_video, ltx, mochi, wan21, wan22, stable_audio, svd),
    )
}


def makers() -> dict[str, Callable[[], TinyPipeline]]:
    """Return the makers of all pipelines by name, variants of these included."""
    from tiny_cascades import CASCADES
    from tiny_edits import EDITS
    from tiny_images import IMAGES
    from tiny_older import OLDER
    from tiny_other_images import OTHER_IMAGES
    from tiny_preconditioned import PRECONDITIONED
    from tiny_sounds import SOUNDS
    from tiny_variants import VARIANTS
    from tiny_videos import VIDEOS

    return {
        **PIPELINES,
        **VARIANTS,
        **IMAGES,
        **VIDEOS,
        **SOUNDS,
        **OTHER_IMAGES,
        **PRECONDITIONED,
        **EDITS,
        **CASCADES,
        **OLDER,
    }


def tiny_pipeline(name: str, seed: int = 0) -> TinyPipeline:
    """Return a pipeline by name."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = makers()[name]()
    made.pipe.set_progress_bar_config(disable=True)
    return made
